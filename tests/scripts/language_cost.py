#!/usr/bin/env python3
"""What each language's example takes: wall-clock time of the compile and the run step in its sandbox, peak memory, and the
whole request as a client sees it, when the source is new and when it has been compiled before.

    tests/scripts/language_cost.py [--url http://127.0.0.1:8080] [--rounds 5]
"""

import argparse
import json
import statistics
import time
import urllib.request
import uuid


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| language | compile, ms | run, ms | peak of the run, MiB | new, ms | again, ms |")
    print("| --- | --: | --: | --: | --: | --: |")
    for language in call(f"{options.url}/v1/languages")["languages"]:
        jobs = {"new": [], "again": []}
        # What is cached is cached by node: every round is sent twice as often as there are nodes.
        nodes = len(call(f"{options.url}/v1/cluster")["nodes"])
        for _ in range(options.rounds):
            files = [
                {"name": language["source"], "content": language["example"]},
                # Makes it another program, whatever its language writes comments with.
                {"name": "round.txt", "content": str(uuid.uuid4())},
            ]
            for _ in range(2 * nodes):
                began = time.monotonic()
                job = call(f"{options.url}/v1/jobs?wait=120", {"language": language["name"], "files": files})
                job["took_ms"] = (time.monotonic() - began) * 1e3
                if job["stdout"] != "hello\n":
                    raise SystemExit(f"{language['name']}: {job}")
                compiled_before = job["compile"] is None or job["compile"]["cached"]
                jobs["again" if compiled_before else "new"].append(job)
        figures = [
            median(job["compile"]["wall_ms"] for job in jobs["new"]),
            median(job["wall_ms"] for job in jobs["new"] + jobs["again"]),
            median(job["memory_kb"] / 1024 for job in jobs["new"] + jobs["again"]),
            median(job["took_ms"] for job in jobs["new"]),
            median(job["took_ms"] for job in jobs["again"]),
        ]
        print("| " + " | ".join([language["name"], *figures]) + " |")


def median(values):
    values = list(values)
    return f"{statistics.median(values):.0f}" if values else ""


if __name__ == "__main__":
    main()

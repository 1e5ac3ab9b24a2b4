#!/usr/bin/env python3
"""What each language's example takes in its sandbox: wall-clock time of the compile and the run step, and peak memory.

    tests/scripts/language_cost.py [--url http://127.0.0.1:8080] [--rounds 5]
"""

import argparse
import json
import statistics
import urllib.request


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
    print("| language | compile, ms | run, ms | peak of the run, MiB |\n| --- | --: | --: | --: |")
    for language in call(f"{options.url}/v1/languages")["languages"]:
        compiles, runs, peaks = [], [], []
        for _ in range(options.rounds):
            job = call(
                f"{options.url}/v1/jobs?wait=120",
                {"language": language["name"], "source": language["example"]},
            )
            if job["stdout"] != "hello\n":
                raise SystemExit(f"{language['name']}: {job}")
            compiles.append((job["compile"] or {}).get("wall_ms"))
            runs.append(job["wall_ms"])
            peaks.append(job["memory_kb"] / 1024)
        compiled = "" if compiles[0] is None else f"{statistics.median(compiles):.0f}"
        print(f"| {language['name']} | {compiled} | {statistics.median(runs):.0f} | {statistics.median(peaks):.0f} |")


if __name__ == "__main__":
    main()

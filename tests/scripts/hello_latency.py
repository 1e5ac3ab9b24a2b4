#!/usr/bin/env python3
"""How long hello-Python takes through the cluster, beside `docker run` and beside a bare python3, in one run.

The ways take turns, round by round, so that a busy moment of the machine hits all of them alike. Absolute times mean
nothing on a shared machine; the differences and ratios of one run do.

    tests/scripts/hello_latency.py [--url http://127.0.0.1:8080] [--rounds 100] [--image quorun/sandbox:0.1.0]
"""

import argparse
import http.client
import statistics
import subprocess
import time
import urllib.parse

PROGRAM = "print('hello')"
RESTRICTIONS = "--rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges --memory 256m".split()


def bare(python):
    return subprocess.run([python, "-c", PROGRAM], capture_output=True, check=True).stdout


def docker_run(image):
    command = ["docker", "run", *RESTRICTIONS, image, "python3", "-c", PROGRAM]
    return subprocess.run(command, capture_output=True, check=True).stdout


class Cluster:
    def __init__(self, url):
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)

    def __call__(self):
        self.connection.request("POST", "/lang/python", PROGRAM.encode())
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"the cluster answered {answer.status}: {body.decode()}")
        return body


def timed(call):
    begin = time.perf_counter()
    output = call()
    took = time.perf_counter() - begin
    if output != b"hello\n":
        raise SystemExit(f"wrong output: {output!r}")
    return took * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--image", default="quorun/sandbox:0.1.0")
    parser.add_argument("--python", default="/usr/bin/python3", help="the bare interpreter (%(default)s)")
    parser.add_argument("--skip-docker-run", action="store_true")
    options = parser.parse_args()
    cluster = Cluster(options.url)
    ways = {"bare python3 -c": lambda: bare(options.python), "through the cluster": cluster}
    if not options.skip_docker_run:
        ways["docker run --rm"] = lambda: docker_run(options.image)
    for way in ways.values():
        timed(way)  # connections, caches, a warm sandbox
    times = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            times[name].append(timed(way))
    base = statistics.median(times["bare python3 -c"])
    print(f"{'':22}{'min':>9}{'p50':>9}{'p90':>9}{'max':>9}   p50 over bare")
    for name, all_times in times.items():
        cut = statistics.quantiles(all_times, n=10)
        p50 = statistics.median(all_times)
        row = "".join(f"{ms:9.1f}" for ms in (min(all_times), p50, cut[8], max(all_times)))
        print(f"{name:22}{row}   {p50 - base:+8.1f} ms  x{p50 / base:.2f}")


if __name__ == "__main__":
    main()

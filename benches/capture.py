#!/usr/bin/env python3
"""What transparent capture costs the proxy: wrk -> proxy -> nginx, CPU time of the proxy's process per request.

Both ways run in one network namespace of the bench's own with the rules of `outrigger redirect` loaded: `explicit` calls
the outbound door and names the peer by Host, `captured` calls the peer's address as a service would, and the kernel brings
it to the same door of the same process. They take turns; load and server have core 0, the proxy has core 1.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "clients"), str(ROOT / "benches"), str(ROOT / "tests" / "capture" / "mesh")]

import hosts  # noqa: E402
from lab import LOOPBACK, Lab, find, listens  # noqa: E402
from one_hop import BODY, TICKS, nginx_file, pinned, spread  # noqa: E402

# Not loopback, which is never captured.
SERVER = "10.99.0.1"
AIM = 1.05


def spent(proxy):
    fields = pathlib.Path(f"/proc/{proxy.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def load(url, seconds, close):
    """Requests answered by wrk as a user that is captured; each on a connection of its own if `close`."""
    head = ["-H", "Connection: close"] if close else []
    argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", find("wrk"), "-t1", "-c32",
            f"-d{seconds}s", "-H", "Host: server", *head, url]
    said = subprocess.run(pinned(0, argv), capture_output=True, text=True, timeout=seconds + 60).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"not all requests were answered:\n{said}")
    return int(re.search(r"(\d+) requests in", said).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "outrigger"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--smoke", action="store_true", help="only that it runs: figures of a short run prove nothing")
    options = parser.parse_args()
    if why := hosts.enter():
        print(f"SKIPPED: {why}")
        return 1 if os.environ.get("CI") == "true" else 0
    lab = Lab("bench-capture", options.binary, True)
    try:
        hosts.run("ip", "link", "set", "lo", "up")
        hosts.run("ip", "addr", "add", f"{SERVER}/32", "dev", "lo")
        inside = 'server {{ {listen} location / {{ default_type text/plain; return 200 "' + BODY + '"; }} }}'
        nginx = nginx_file(lab, "server", 8080, inside)
        conf = lab.path("server.conf")
        conf.write_text(conf.read_text().replace(f"listen {LOOPBACK}:8080", f"listen {SERVER}:8080"))
        lab.start("server", pinned(0, nginx), ready=lambda: listens(8080, SERVER))
        file = lab.path("outrigger.yaml")
        file.write_text(json.dumps({"service": "bench", "redirect": {"mode": "redirect"},
                                    "peers": {"server": {"static": [f"{SERVER}:8080"]}}}))
        hosts.readable(file)
        subprocess.run([options.binary, "redirect", "apply", "-c", file], check=True, capture_output=True)
        user = ["setpriv", "--reuid", "1337", "--regid", "1337", "--clear-groups"]
        proxy = lab.start("outrigger", pinned(1, [*user, options.binary, "run", "-c", file]), ready=15001)
        ways = {"explicit": f"http://{LOOPBACK}:15001/", "captured": f"http://{SERVER}:8080/"}
        cost = {}
        for turn in range(options.rounds + 1):
            for close in (False, True):
                for name in sorted(ways, reverse=bool(turn % 2)):
                    before = spent(proxy)
                    count = load(ways[name], 1 if turn == 0 else options.seconds, close)
                    if turn:  # the first is for connections, pages and branch predictors
                        kind = name + (", a connection each" if close else "")
                        cost.setdefault(kind, []).append(1e6 * (spent(proxy) - before) / count)
        print("| way | CPU µs a request |\n|---|---|")
        for name, values in sorted(cost.items()):
            print(f"| {name} | {spread(values)} |")
        ratios = [now / was for now, was in zip(cost["captured"], cost["explicit"])]
        ratio = statistics.median(ratios)
        fine = ratio <= AIM
        print(f"{'ok  ' if fine else 'OVER'} × {spread(ratios, 3)} of explicit mode (aim: {AIM} at most)")
        return 0 if fine or options.smoke else 1
    finally:
        lab.stop()


if __name__ == "__main__":
    sys.exit(main())

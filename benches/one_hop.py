#!/usr/bin/env python3
"""One hop beside its neighbours: wrk -> proxy -> nginx, CPU time of the proxy's process per request.

Load and server share core 0, the proxy has core 1; all proxies take turns in every round (A B C A B C …), so that what
the machine does meanwhile meets each of them. Prints the medians with the least and the most of the rounds.
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
sys.path.insert(0, str(ROOT / "tests" / "clients"))

from lab import LOOPBACK, Lab, Missing, find, listens  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
BODY = "x" * 99 + "\\n"


def pinned(core, argv):
    """The command on one core, where the machine has more than one."""
    return ["taskset", "-c", str(core), *argv] if (os.cpu_count() or 1) > 1 else argv


def nginx_file(lab, name, port, inside, kind=""):
    file = lab.path(f"{name}.conf")
    temp = " ".join(f"{k}_temp_path {lab.path(name)}-{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    file.write_text(f"""
        daemon off; master_process off; worker_processes 1; pid {lab.path(name)}.pid; error_log {lab.path(name)}.err crit;
        events {{ worker_connections 4096; }}
        http {{ access_log off; {temp} keepalive_requests 100000000; {inside.format(listen=f"listen {LOOPBACK}:{port} {kind};")} }}""")
    return [find("nginx"), "-c", file, "-p", lab.folder, "-e", lab.path(f"{name}.err")]


class Bench:
    """The server and the proxies in front of it."""

    def __init__(self, lab, options):
        self.lab, self.http2 = lab, options.http2
        self.proxies, self.ports = {}, {}
        self.server = lab.port()
        inside = 'server {{ {listen} location / {{ default_type text/plain; return 200 "' + BODY + '"; }} }}'
        lab.start("server", pinned(0, nginx_file(lab, "server", self.server, inside, "http2" if self.http2 else "")), ready=self.server)
        beside = ["outrigger-beside"] if options.beside else []
        for name in ("relay", "nginx", "haproxy", "outrigger", *beside, "outrigger-log-all"):
            if not options.only or name in ("relay", *options.only, *beside):
                self.add(name, options)

    def add(self, name, options):
        port = self.lab.port()
        try:
            argv = getattr(self, name.split("-")[0])(name, port, options)
        except Missing as why:
            print(f"{name} is left out: {why}", file=sys.stderr)
            return
        if argv:
            self.proxies[name] = self.lab.start(name, pinned(1, argv), ready=lambda: listens(port))
            self.ports[name] = port

    def relay(self, name, port, _):
        built = self.lab.path("relay")
        subprocess.run(["cc", "-O2", "-Wall", "-o", built, ROOT / "benches" / "relay" / "relay.c"], check=True)
        return [built, port, self.server]

    def nginx(self, name, port, _):
        if self.http2:
            return None  # nginx speaks no HTTP/2 to its servers
        inside = ("upstream app {{ server %s:%d; keepalive 64; keepalive_requests 100000000; }} server {{ {listen} location / {{ "
                  'proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}' % (LOOPBACK, self.server))
        return nginx_file(self.lab, "nginx-proxy", port, inside)

    def haproxy(self, name, port, _):
        kind = "proto h2" if self.http2 else ""
        file = self.lab.path("haproxy.cfg")
        file.write_text(f"global\n nbthread 1\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
                        f" http-reuse always\nlisten one\n bind {LOOPBACK}:{port} {kind}\n server app {LOOPBACK}:{self.server} {kind}\n")
        return [find("haproxy"), "-f", file, "-db", "-q"]

    def outrigger(self, name, port, options):
        config = {"service": "bench", "admin": f"{LOOPBACK}:{self.lab.port()}",
                  "inbound": {"listen": f"{LOOPBACK}:{port}", "app": f"{LOOPBACK}:{self.server}"},
                  "outbound": {"listen": f"{LOOPBACK}:{self.lab.port()}"}}
        if name.endswith("log-all"):
            config["telemetry"] = {"access-log": {"log": "all", "format": "json"}}
        binary = options.beside if name.endswith("beside") else options.binary
        file = self.lab.path(f"{name}.yaml")
        file.write_text(json.dumps(config))
        # access lines go where a collector would read them; a file in memory stands in for it
        return ["sh", "-c", 'exec "$0" run -c "$1" >/dev/null', binary, file]

    def spent(self, name):
        """User and system seconds that the proxy's process used since its start."""
        fields = pathlib.Path(f"/proc/{self.proxies[name].child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) / TICKS, int(fields[12]) / TICKS

    def load(self, port, seconds):
        """Drives the load; returns requests answered and per second."""
        url = f"http://{LOOPBACK}:{port}/"
        if self.http2:
            argv = [find("h2load"), "-c4", "-m16", "-t1", "-D", str(seconds), url]
        else:
            argv = [find("wrk"), "-t1", "-c32", f"-d{seconds}s", url]
        said = subprocess.run(pinned(0, argv), capture_output=True, text=True, timeout=seconds + 60).stdout
        if self.http2:
            total, good, failed = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed", said).groups()
            bad = total != good or int(failed) or "0 3xx, 0 4xx, 0 5xx" not in said
        else:
            total, bad = re.search(r"(\d+) requests in", said).group(1), "Non-2xx" in said or "Socket errors" in said
        if bad or not int(total):
            raise RuntimeError(f"not all requests were answered:\n{said}")
        return int(total), int(total) / seconds

    def round(self, name, seconds):
        before = self.spent(name)
        count, rate = self.load(self.ports[name], seconds)
        user, system = (1e6 * (now - was) / count for now, was in zip(self.spent(name), before))
        return {"user": user, "system": system, "total": user + system, "rate": rate}


def spread(values, digits=1):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(bench, rounds):
    """The rows in Markdown, and the figures of `outrigger` with telemetry as it is by default."""
    print("| proxy | user µs | system µs | total µs | × relay | requests/s | RSS MiB |\n|---|---|---|---|---|---|---|")
    figures = {}
    for name, runs in rounds.items():
        ratio = [run["total"] / floor["total"] for run, floor in zip(runs, rounds["relay"])]
        rss = bench.proxies[name].rss() / (1 << 20)
        column = {key: [run[key] for run in runs] for key in runs[0]}
        print(f"| {name} | {spread(column['user'])} | {spread(column['system'])} | {spread(column['total'])} | {spread(ratio, 2)} "
              f"| {statistics.median(column['rate']):.0f} | {rss:.1f} |")
        figures[name] = (statistics.median(column["user"]), statistics.median(ratio), rss)
    return figures


def judge(figures):
    """Holds the default row to the aims of benches/README.md; returns the exit code."""
    user, ratio, rss = figures["outrigger"]
    aims = ((user, 6.5, "user µs per request"), (ratio, 1.42, "× the relay's CPU"), (rss, 16.0, "MiB RSS after it"))
    for value, most, what in aims:
        print(f"{'ok  ' if value <= most else 'OVER'} {value:.2f} {what} (aim: {most} at most)")
    return 0 if all(value <= most for value, most, _ in aims) else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "outrigger"))
    parser.add_argument("--beside", help="another outrigger to measure in the same turns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--only", action="append", help="a proxy to measure (again for more); the relay always runs")
    parser.add_argument("--http2", action="store_true", help="h2load with 4 connections of 16 streams instead of wrk")
    parser.add_argument("--smoke", action="store_true", help="only that it runs: figures of a short run prove nothing")
    options = parser.parse_args()
    lab = Lab("bench", None, True)
    try:
        bench = Bench(lab, options)
        names = list(bench.proxies)
        for name in names:
            bench.load(bench.ports[name], 1)  # warm: connections, pages, branch predictors
        rounds = {name: [] for name in names}
        for turn in range(options.rounds):
            for name in names[turn % len(names):] + names[:turn % len(names)]:
                rounds[name].append(bench.round(name, options.seconds))
        figures = table(bench, rounds)
        return 0 if options.smoke or options.http2 or "outrigger" not in figures else judge(figures)
    finally:
        lab.stop()


if __name__ == "__main__":
    sys.exit(main())

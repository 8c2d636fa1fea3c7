#!/usr/bin/env python3
"""The mutual TLS pair beside Envoy's: client -> sidecar -> TLS 1.3 -> sidecar -> nginx, on the same certificates.

Both pairs take turns in every round, so that what the machine does meanwhile meets each of them. Load and server share
core 0, the sidecars have core 1. Four parts: CPU of both sidecars per request over HTTP/1 and over HTTP/2, latency
added at a fixed rate, and CPU of the called side per handshake: full with a certificate that was never shown before, full
with one that was, and resumed. A pair of bare byte relays without TLS shows what of a request is the kernel's. Prints
medians with the least and the most of the rounds, and holds the ratios to the aims of benches/README.md.
"""

import argparse
import json
import pathlib
import socket
import ssl
import statistics
import subprocess
import sys

from one_hop import BODY, ROOT, TICKS, nginx_file, pinned, spread

import envoy
from lab import LOOPBACK, Lab, find, listens

OURS, THEIRS, RELAY = "outrigger", "envoy", "relay, no TLS"
FIRST, FULL, RESUMED = "first", "full", "resumed"
IDS = {"caller": "spiffe://shop/caller", "callee": "spiffe://shop/callee"}


class Pair:
    """Two sidecars: requests go in at `port`, mutual TLS is spoken at `door`."""

    def __init__(self, front, back, port, door):
        self.front, self.back, self.port, self.door = front, back, port, door

    def spent(self):
        return tuple(cpu(one) for one in (self.front, self.back))


def cpu(process):
    """User and system seconds that a process used since its start."""
    fields = pathlib.Path(f"/proc/{process.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Bench:
    """A server for each version of HTTP, and both pairs in front of each."""

    def __init__(self, lab, options):
        self.lab, self.binary = lab, options.binary
        self.issue = envoy.authority(lab, "ca")
        self.caller, self.callee = self.issue("caller"), self.issue("callee", "--dns", "callee.test")
        self.relay = lab.path("relay")
        subprocess.run(["cc", "-O2", "-Wall", "-o", self.relay, ROOT / "benches" / "relay" / "relay.c"], check=True)
        self.servers, self.pairs = {}, {}
        for version in (1, 2):
            port = self.servers[version] = lab.port()
            inside = 'server {{ {listen} location / {{ default_type text/plain; return 200 "' + BODY + '"; }} }}'
            argv = nginx_file(lab, f"server{version}", port, inside, "http2" if version == 2 else "")
            lab.start(f"server{version}", pinned(0, argv), ready=port)
            self.pairs[version] = {OURS: self.ours(version), THEIRS: self.theirs(version), RELAY: self.relays(version)}
        self.pace = lab.path("pace")
        subprocess.run(["cc", "-O2", "-Wall", "-o", self.pace, ROOT / "benches" / "relay" / "pace.c"], check=True)

    def ours(self, version):
        """Two sidecars with their default telemetry."""
        def start(name, port, config):
            file = self.lab.path(f"{name}.yaml")
            file.write_text(json.dumps({"service": name, "admin": f"{LOOPBACK}:{self.lab.port()}", **config}))
            argv = [self.binary, "run", "-c", file]
            return self.lab.start(name, pinned(1, argv), ready=lambda: listens(port))
        door, port = self.lab.port(), self.lab.port()
        back = start(f"callee{version}", door, {
            "identity": envoy.identity(self.callee), "outbound": {"listen": f"{LOOPBACK}:{self.lab.port()}"},
            "inbound": {"listen": f"{LOOPBACK}:{door}", "app": f"{LOOPBACK}:{self.servers[version]}",
                        "allow": {"from": IDS["caller"]}}})
        front = start(f"caller{version}", port, {
            "identity": envoy.identity(self.caller), "outbound": {"listen": f"{LOOPBACK}:{port}"},
            "peers": {"callee": {"static": [f"{LOOPBACK}:{door}"], "hosts": [LOOPBACK, "server"],
                                 "mtls": {"id": IDS["callee"]}}}})
        return Pair(front, back, port, door)

    def theirs(self, version):
        """Two Envoys of one worker each."""
        door, port, prefix = self.lab.port(), self.lab.port(), pinned(1, [])
        back = envoy.callee(self.lab, f"envoy-callee{version}", door, self.servers[version], self.callee, [IDS["caller"]],
                            version, prefix=prefix)
        front = envoy.caller(self.lab, f"envoy-caller{version}", port, door, self.caller, [IDS["callee"]], version, prefix=prefix)
        return Pair(front, back, port, door)

    def relays(self, version):
        """Two byte relays in a row: each reads and writes as often as a sidecar, and does nothing else."""
        ports = self.lab.port(), self.lab.port()

        def start(name, port, to):
            return self.lab.start(f"{name}{version}", pinned(1, [self.relay, port, to]), ready=port)
        back = start("relay-back", ports[1], self.servers[version])
        return Pair(start("relay-front", ports[0], ports[1]), back, *ports)

    def load(self, pair, version, seconds):
        """Drives the load; returns how many requests were answered."""
        url = f"http://{LOOPBACK}:{pair.port}/"
        if version == 2:
            argv = [find("h2load"), "-c4", "-m16", "-t1", "-D", str(seconds), url]
        else:
            argv = [find("wrk"), "-t1", "-c32", f"-d{seconds}s", url]
        said = subprocess.run(pinned(0, argv), capture_output=True, text=True, timeout=seconds + 60).stdout
        words = said.split()
        if version == 2:
            bad, total = "0 failed" not in said or "0 3xx, 0 4xx, 0 5xx" not in said, int(words[words.index("succeeded,") - 1])
        else:
            bad, total = "Non-2xx" in said or "Socket errors" in said, int(words[words.index("requests") - 1])
        if bad or not total:
            raise RuntimeError(f"not all requests were answered:\n{said}")
        return total

    def requests(self, version, name, seconds):
        """Microseconds of CPU per request: of the caller's sidecar, of the service's, of both."""
        pair = self.pairs[version][name]
        before = pair.spent()
        count = self.load(pair, version, seconds)
        front, back = (1e6 * (now - was) / count for now, was in zip(pair.spent(), before))
        return {"front": front, "back": back, "both": front + back, "rate": count / seconds}

    def latency(self, port, seconds, rate):
        """p50 and p99 in milliseconds at a fixed rate."""
        argv = pinned(0, [self.pace, port, rate, seconds, 16])
        said = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=seconds + 60)
        if said.returncode:
            raise RuntimeError(f"not all requests were answered: {said.stderr}")
        _, half, most, _ = said.stdout.split()
        return {"p50": float(half) / 1e3, "p99": float(most) / 1e3}

    def handshakes(self, name, count, kind):
        """Microseconds of CPU of the called side per connection that is made, proven and closed."""
        pair, caller = self.pairs[1][name], Handshaker(self.caller)
        caller.begin(pair.door)
        callers = [Handshaker(self.issue("caller")) for _ in range(count)] if kind == FIRST else [caller] * count
        before = cpu(pair.back)
        for one in callers:
            one.shake(pair.door, kind == RESUMED)
        return 1e6 * (cpu(pair.back) - before) / count


class Handshaker:
    """Connects with the caller's certificate, and resumes its first session if asked to."""

    def __init__(self, folder):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.load_verify_locations(folder / "roots.pem")
        self.context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.context.set_alpn_protocols(["http/1.1"])
        self.session = None

    def connect(self, port, session=None):
        bare = socket.create_connection((LOOPBACK, port), timeout=10)
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(bare, server_hostname="callee.test", session=session)

    def begin(self, port):
        """One request, whose answer brings a ticket too."""
        with self.connect(port) as secure:
            secure.sendall(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
            if not secure.recv(4096).startswith(b"HTTP/1.1 200 "):
                raise RuntimeError("the service did not answer")
            self.session = secure.session

    def shake(self, port, resumed):
        """One connection without a request; that the other side closes in order shows that it took our certificate."""
        with self.connect(port, self.session if resumed else None) as secure:
            if secure.session_reused != resumed or secure.selected_alpn_protocol() != "http/1.1":
                raise RuntimeError(f"asked for {'a resumed' if resumed else 'a full'} handshake and got the other")
            secure.unwrap().close()


def turns(options, names, measure):
    """Each of `names` in every round, by turns; returns their figures by round."""
    rounds = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            rounds[name].append(measure(name))
    return rounds


def column(runs, key):
    return [run[key] for run in runs]


def per_request(bench, options, version, aim):
    print(f"\nHTTP/{version}, CPU per request\n\n| pair | caller's µs | service's µs | both µs | × Envoy's | requests/s |\n|---|---|---|---|---|---|")
    for pair in bench.pairs[version].values():
        bench.load(pair, version, 1)  # warm: connections, pages, branch predictors
    rounds = turns(options, [THEIRS, OURS, RELAY], lambda name: bench.requests(version, name, options.seconds))
    for name, runs in rounds.items():
        ratio = [run["both"] / other["both"] for run, other in zip(runs, rounds[THEIRS])]
        cells = [spread(column(runs, key)) for key in ("front", "back", "both")]
        print(f"| {name} | {' | '.join(cells)} | {spread(ratio, 2)} | {statistics.median(column(runs, 'rate')):.0f} |")
    ours = statistics.median(run["both"] / other["both"] for run, other in zip(rounds[OURS], rounds[THEIRS]))
    return [(ours, aim, f"× Envoy's CPU per request over HTTP/{version}")]


def added(bench, options):
    print(f"\nLatency at {options.rate} requests/s over 16 connections, open loop\n\n"
          "| way | p50 ms | p99 ms | added p50 ms | added p99 ms | × Envoy's p99 added |\n|---|---|---|---|---|---|")
    ports = {"direct": bench.servers[1], **{name: bench.pairs[1][name].port for name in (THEIRS, OURS)}}
    for port in ports.values():
        bench.latency(port, 1, options.rate)
    rounds = turns(options, ["direct", THEIRS, OURS], lambda name: bench.latency(ports[name], options.seconds, options.rate))
    more = {name: {key: [run[key] - floor[key] for run, floor in zip(runs, rounds["direct"])] for key in ("p50", "p99")}
            for name, runs in rounds.items()}
    for name, runs in rounds.items():
        cells = [spread(column(runs, key), 2) for key in ("p50", "p99")] + [spread(more[name][key], 2) for key in ("p50", "p99")]
        ratio = [one / max(other, 0.001) for one, other in zip(more[name]["p99"], more[THEIRS]["p99"])]
        print(f"| {name} | {' | '.join(cells)} | {spread(ratio, 2)} |")
    return [(statistics.median(ratio), 0.6, "× Envoy's added p99")]


def shaken(bench, options):
    print("\nCPU of the called side per handshake (TLS 1.3, X25519, ECDSA P-256 on both sides), in µs\n\n"
          "| sidecar | full, new certificate | full, known one | resumed | full per CPU-second | resumed × full | × full, new |\n"
          "|---|---|---|---|---|---|---|")
    names = [(name, kind) for name in (THEIRS, OURS) for kind in (FIRST, FULL, RESUMED)]
    # The system counts CPU in ticks: what took less than one took at most one.
    tick = 1e6 / TICKS / options.handshakes
    rounds = turns(options, names, lambda one: max(bench.handshakes(one[0], options.handshakes, one[1]), tick))

    def ratio(one, other):
        return statistics.median(a / b for a, b in zip(rounds[one], rounds[other]))
    for name in (THEIRS, OURS):
        cells = [spread(rounds[name, kind], 0) for kind in (FIRST, FULL, RESUMED)]
        rate = 1e6 / statistics.median(rounds[name, FULL])
        times = [ratio((name, kind), (name, RESUMED)) for kind in (FULL, FIRST)]
        print(f"| {name} | {' | '.join(cells)} | {rate:.0f} | {times[0]:.2f} | {times[1]:.2f} |")
    return [(-ratio((THEIRS, FULL), (OURS, FULL)), -1.0, "× Envoy's full handshakes per CPU-second"),
            (-ratio((OURS, FIRST), (OURS, RESUMED)), -1.5, "× full handshakes of new certificates per CPU-second, resumed")]


def judge(figures):
    """Holds the figures to their aims (a negative one is to be at least so much); returns the exit code."""
    print()
    for value, most, what in figures:
        bound = "at most" if most > 0 else "at least"
        print(f"{'ok  ' if value <= most else 'MISS'} {abs(value):.2f} {what} (aim: {abs(most)} {bound})")
    return 0 if all(value <= most for value, most, _ in figures) else 1


PARTS = {
    "http1": lambda bench, options: per_request(bench, options, 1, 0.35),
    "http2": lambda bench, options: per_request(bench, options, 2, 0.55),
    "latency": added,
    "handshakes": shaken,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "outrigger"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--rate", type=int, default=1000, help="requests per second where latency is measured")
    parser.add_argument("--handshakes", type=int, default=1000, help="of each run")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part to measure (again for more)")
    parser.add_argument("--smoke", action="store_true", help="only that it runs: figures of a short run prove nothing")
    options = parser.parse_args()
    lab = Lab("bench", options.binary, False)
    try:
        bench = Bench(lab, options)
        figures = [figure for name in options.only or PARTS for figure in PARTS[name](bench, options)]
        code = judge(figures)
        return 0 if options.smoke else code
    finally:
        lab.stop()


if __name__ == "__main__":
    sys.exit(main())

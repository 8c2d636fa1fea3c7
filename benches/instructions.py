#!/usr/bin/env python3
"""Instructions of one hop: how many a proxy's process spends on a request, by callgrind, which no neighbour disturbs.

Each binary serves two numbers of requests under callgrind, from 32 kept connections, to nginx; the difference of the two
runs leaves out start and stop. A `--profile profiling` build has the names for `--keep`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
sys.path.insert(0, str(ROOT / "benches"))

from lab import LOOPBACK, Lab, find, listens  # noqa: E402
from one_hop import BODY, nginx_file  # noqa: E402

CONNECTIONS = 32
REQUEST = b"GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n"


def whole(connection, held):
    """Reads one answer of known length; returns what came after it."""
    while True:
        head, found, body = held.partition(b"\r\n\r\n")
        if found:
            length = int(re.search(rb"(?i)content-length: *(\d+)", head).group(1))
            if len(body) >= length:
                if b" 200 " not in head.split(b"\r\n", 1)[0]:
                    raise RuntimeError(f"not 200: {head!r}")
                return body[length:]
        got = connection.recv(65536)
        if not got:
            raise RuntimeError("the connection was closed")
        held += got


def load(port, requests):
    """Sends so many requests, one at a time on each connection; all must be answered with 200."""
    with contextlib.ExitStack() as open_:
        connections = [open_.enter_context(socket.create_connection((LOOPBACK, port), timeout=60)) for _ in range(CONNECTIONS)]
        for _ in range(requests // CONNECTIONS):
            for connection in connections:
                connection.sendall(REQUEST)
            for connection in connections:
                if whole(connection, b""):
                    raise RuntimeError("more than one answer")


def run(lab, binary, server, requests, keep=None):
    """All instructions of one run."""
    port = lab.port()
    name = f"run-{port}"
    file, out = lab.path(f"{name}.yaml"), lab.path(f"{name}.callgrind")
    file.write_text(json.dumps({
        "service": "bench", "admin": f"{LOOPBACK}:{lab.port()}", "grace": "1s",
        "inbound": {"listen": f"{LOOPBACK}:{port}", "app": f"{LOOPBACK}:{server}"},
        "outbound": {"listen": f"{LOOPBACK}:{lab.port()}"}}))
    argv = [find("valgrind"), "--tool=callgrind", f"--callgrind-out-file={out}", binary, "run", "-c", file]
    process = lab.start(name, argv, ready=lambda: listens(port), within=120.0)
    load(port, requests)
    process.signal(signal.SIGTERM)
    process.child.wait(60)
    text = out.read_text()
    if keep:
        pathlib.Path(keep).write_text(text)
    return int(re.search(r"^(?:summary|totals): (\d+)", text, re.M).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", action="append", help="one to measure (again for more)")
    parser.add_argument("--requests", type=int, default=3200, help="of the shorter run; the longer has three times as many")
    parser.add_argument("--keep", help="where callgrind's file of the longer run goes, for callgrind_annotate")
    options = parser.parse_args()
    lab = Lab("instructions", None, True)
    try:
        server = lab.port()
        inside = 'server {{ {listen} location / {{ default_type text/plain; return 200 "' + BODY + '"; }} }}'
        lab.start("server", nginx_file(lab, "server", server, inside), ready=server)
        for binary in options.binary or [str(ROOT / "target" / "profiling" / "outrigger")]:
            few = run(lab, binary, server, options.requests)
            many = run(lab, binary, server, 3 * options.requests, options.keep)
            print(f"{(many - few) / (2 * options.requests):9.0f} instructions a request: {os.path.relpath(binary)}", flush=True)
    finally:
        lab.stop()


if __name__ == "__main__":
    sys.exit(main())

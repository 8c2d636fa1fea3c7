"""Opaque TCP by bare sockets: half-close in both directions, resets, silence, many connections, both sides at once."""

import hashlib
import os
import socket
import struct
import threading

from cases import Area
from lab import LOOPBACK, wait_for

area = Area("half-close")


class Server(threading.Thread):
    """Answers each connection by its first line: `count`, `first`, `echo`, `reset` or `hold`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server((LOOPBACK, 0), backlog=512)
        self.port, self.ends = self.listener.getsockname()[1], []
        self.start()

    def run(self):
        while True:
            line, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(line,), daemon=True).start()

    def serve(self, line):
        stream = line.makefile("rb")
        try:
            word = stream.readline().strip()
            if word == b"count":  # reads to the end first, answers then
                line.sendall(hashlib.sha256(stream.read()).hexdigest().encode() + b"\n" + b"tail" * 100000)
            elif word == b"first":  # ends its own side first and goes on reading
                line.sendall(b"over from here")
                line.shutdown(socket.SHUT_WR)
                self.ends.append(len(stream.read()))
            elif word == b"echo":
                while block := stream.read1(65536):
                    line.sendall(block)
            elif word == b"reset":
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif word == b"hold":
                line.sendall(b"held")
                self.ends.append("end" if not stream.read() else "bytes")
        except ConnectionError:
            self.ends.append("reset")
        finally:
            stream.close()
            line.close()


@area.setup
def world(lab):
    area.server = Server()
    port = area.server.port
    tcp = {"protocol": "tcp"}
    return {"declared": lab.mesh("declared", port, peer=tcp, inbound=tcp), "detected": lab.mesh("detected", port, peer=tcp)}


def dial(at, first):
    line = socket.create_connection((at.host, at.tcp), timeout=20)
    line.sendall(first)
    return line


def everything(line):
    """What arrives until the other side ends."""
    return b"".join(iter(lambda: line.recv(1 << 16), b""))


def both(function):
    """Registers a case for the declared and for the detecting door."""
    label = function.__name__.replace("_", "-")
    area.case("declared", name=label)(function)
    area.case("detected", name=f"{label}-detected")(function)
    return function


@both
def the_client_ends_first(at):
    payload = os.urandom(3 << 20)
    with dial(at, b"count\n" + payload) as line:
        line.shutdown(socket.SHUT_WR)
        answer = everything(line)
    assert answer == hashlib.sha256(payload).hexdigest().encode() + b"\n" + b"tail" * 100000


@both
def the_server_ends_first(at):
    before = len(area.server.ends)
    with dial(at, b"first\n") as line:
        assert everything(line) == b"over from here"
        line.sendall(b"still here" * 50000)
    wait_for(lambda: len(area.server.ends) > before, "the server read to the end")
    assert area.server.ends[before] == 500000


@both
def both_directions_at_once(at):
    payload = os.urandom(8 << 20)
    with dial(at, b"echo\n") as line:
        def send():
            line.sendall(payload)
            line.shutdown(socket.SHUT_WR)
        threading.Thread(target=send, daemon=True).start()
        assert hashlib.sha256(everything(line)).digest() == hashlib.sha256(payload).digest()


@both
def a_reset_by_the_server_ends_the_client(at):
    with dial(at, b"reset\n") as line:
        try:
            end = "end" if everything(line) == b"" else "bytes"
        except ConnectionResetError:
            end = "reset"
    assert end == "reset", f"the client saw an orderly {end}"


@both
def a_reset_by_the_client_ends_the_server(at):
    before = len(area.server.ends)
    line = dial(at, b"hold\n")
    assert line.recv(4) == b"held"
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()
    wait_for(lambda: len(area.server.ends) > before, "the server learned of it", 10)
    assert area.server.ends[before] == "reset", f"the server saw an orderly {area.server.ends[before]}"


@both
def two_hundred_connections_at_once(at):
    lines = [dial(at, b"hold\n") for _ in range(200)]
    assert {line.recv(4) for line in lines} == {b"held"}
    for line in lines:
        line.close()


@both
def one_byte_at_a_time(at):
    with dial(at, b"") as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"echo\nslow words":
            line.sendall(bytes([byte]))
        line.shutdown(socket.SHUT_WR)
        assert everything(line) == b"slow words"

"""What an app in a network of its own finds: who answers questions to name servers, what becomes of other UDP, and its addresses."""

import socket
import sys

NAME = sys.argv[1]
QUESTION = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"".join(
    bytes([len(label)]) + label.encode() for label in NAME.split(".")) + b"\x00\x00\x01\x00\x01"


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def first_two(answer):
    """Of the address at its end."""
    return ".".join(str(byte) for byte in answer[-4:-2])


def udp(server):
    with socket.socket(family(server), socket.SOCK_DGRAM) as asker:
        asker.settimeout(5)
        asker.connect((server, 53))
        asker.send(QUESTION)
        return first_two(asker.recv(512))


def tcp(server):
    with socket.create_connection((server, 53), timeout=5) as asker:
        asker.sendall(len(QUESTION).to_bytes(2, "big") + QUESTION)
        return first_two(asker.recv(512))


def other():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(5)
        sender.connect(("10.9.0.2", 123))
        sender.send(b"x")
        try:
            return sender.recv(1)
        except ConnectionRefusedError:
            return "refused"


def own(there):
    with socket.socket(family(there), socket.SOCK_DGRAM) as socket_:
        socket_.connect((there, 9))
        return socket_.getsockname()[0]


for server in ("127.0.0.53", "192.0.2.53"):
    print(f"udp {server}: {udp(server)}")
print(f"tcp 127.0.0.53: {tcp('127.0.0.53')}")
print(f"udp fd09::2: {udp('fd09::2')}")
print(f"other UDP: {other()}")
print(f"own: {own('10.9.0.2')} {own('fd09::2')}")

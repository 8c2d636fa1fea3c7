"""Both ends of connections, as programs of their own, so that each can be another user in another namespace.

serve NAME PORT…   says to each connection who serves it, for whom, and what the kernel says of where it was going; then echoes
dial ADDRESS PORT  connects and prints what was said, then sends and gets back what `--bytes` says
ask ADDRESS PORT   the same by one datagram
forge ADDRESS PORT sends one packet of a connection that there is not, with a signature that nobody can check (RFC 2385):
                   the kernel then notes a connection, and no answer ends that; with `--link` its answer too, as a neighbour can
"""

import argparse
import json
import select
import socket
import struct
import sys

# linux/in.h, linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h; Python names few of them.
SOL_IPV6, IP_TRANSPARENT, IPV6_TRANSPARENT, ORIGINAL_DST = 41, 19, 75, 80
# The code point by which the inbound door's calls to the app are known.
TO_APP = 0x0F << 2


def original(connection):
    """Where the connection was going before the kernel changed that, or why that is not said."""
    mapped = connection.getsockname()[0].startswith("::ffff:")
    try:
        if connection.family == socket.AF_INET or mapped:
            _, port, *ip = struct.unpack("!HH4B", connection.getsockopt(socket.SOL_IP, ORIGINAL_DST, 16)[:8])
            return [".".join(map(str, ip)), port]
        raw = connection.getsockopt(SOL_IPV6, ORIGINAL_DST, 28)
        return [socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack("!H", raw[2:4])[0]]
    except OSError as error:
        return [error.strerror, 0]


def plain(address):
    return [address[0].removeprefix("::ffff:"), address[1]]


def transparent(sock):
    if sock.family == socket.AF_INET6:
        sock.setsockopt(SOL_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)


def serve(chosen):
    listeners, connections, datagrams = [], {}, []
    for port in chosen.ports:
        sock = socket.socket(socket.AF_INET if chosen.v4 else socket.AF_INET6)
        if not chosen.v4:
            sock.setsockopt(SOL_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if chosen.transparent:
            sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            transparent(sock)
        sock.bind(("0.0.0.0" if chosen.v4 else "::", port))
        sock.listen(64)
        listeners.append(sock)
        if chosen.udp:
            # An answer must come from the address that the question was sent on to, which only a socket there does.
            both = ("127.0.0.1", "::1") if chosen.loopback else ("0.0.0.0", "::")
            for family, address in zip((socket.AF_INET, socket.AF_INET6), both):
                sock = socket.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    sock.setsockopt(SOL_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, port))
                datagrams.append(sock)
    print("ready", flush=True)
    while True:
        for sock in select.select([*listeners, *connections, *datagrams], [], [])[0]:
            if sock in datagrams:
                data, peer = sock.recvfrom(2048)
                sock.sendto(json.dumps({"who": chosen.name, "peer": plain(peer), "said": data.decode()}).encode(), peer)
            elif sock in listeners:
                connection, peer = sock.accept()
                greet(connection, peer, chosen)
                connections[connection] = True
            else:
                forward(sock, connections)


def greet(connection, peer, chosen):
    said = {"who": chosen.name, "peer": plain(peer), "here": plain(connection.getsockname()),
            "original": original(connection)}
    if chosen.onward and said["original"][1] not in (0, *chosen.ports):
        # As a door would: to where the caller was going, unless that is the door itself.
        said["onward"] = dial_on(connection, peer, chosen)
    connection.sendall(json.dumps(said).encode() + b"\n")


def dial_on(connection, peer, chosen):
    """What is said where the connection was going, by way of a connection of our own."""
    going = original(connection)
    source = plain(peer)[0] if chosen.transparent else None
    try:
        sock = connect(going[0], going[1], tos=TO_APP if chosen.to_app else 0, source=source, timeout=4)
        with sock, sock.makefile("rb") as said:
            return json.loads(said.readline())
    except OSError as error:
        return {"who": str(error)}


def forward(sock, connections):
    try:
        data = sock.recv(65536)
        # Whoever ends a connection first remembers it for a while; asked to, that is this end.
        if data and data != b"end":
            sock.sendall(data)
            return
    except OSError:
        pass
    del connections[sock]
    sock.close()


def connect(address, port, tos=0, source=None, timeout=4.0, own_port=0):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family)
    sock.settimeout(timeout)
    if tos and family == socket.AF_INET:
        sock.setsockopt(socket.SOL_IP, socket.IP_TOS, tos)
    elif tos:
        sock.setsockopt(SOL_IPV6, socket.IPV6_TCLASS, tos)
    if own_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", own_port))
    if source:
        transparent(sock)
        sock.bind((source, 0))
    sock.connect(place(address, port))
    return sock


def place(address, port):
    """Also one that names its interface."""
    return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][4]


def dial(chosen):
    try:
        sock = connect(chosen.address, chosen.port, tos=chosen.tos, timeout=chosen.timeout, own_port=chosen.own_port)
        said = sock.makefile("rb")
        answer = json.loads(said.readline())
        if chosen.own_port:
            sock.sendall(b"end")
            said.read()
        if chosen.hold:
            print("open", flush=True)
            sys.stdin.readline()
        left = chosen.bytes
        while left:
            chunk = b"x" * min(left, 16384)
            sock.sendall(chunk)
            if said.read(len(chunk)) != chunk:
                raise OSError("not what was sent")
            left -= len(chunk)
    except (OSError, ValueError) as error:
        answer = {"who": f"nobody: {error}"}
    print(json.dumps(answer), flush=True)


def ask(chosen):
    sock = socket.socket(socket.AF_INET6 if ":" in chosen.address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(chosen.timeout)
    try:
        sock.connect(place(chosen.address, chosen.port))
        sock.send(b"question")
        answer = json.loads(sock.recv(2048))
    except OSError as error:
        answer = {"who": f"nobody: {error}"}
    print(json.dumps(answer), flush=True)


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def segment(source, target):
    """An acknowledgement from one address and port to another."""
    option = b"\x13\x12" + b"A" * 16 + b"\x01\x01"
    data = struct.pack("!HHIIBBHHH", source[1], target[1], 1000, 5000, (20 + len(option)) << 2, 0x10, 65535, 0, 0) + option
    ends = packed(source[0]) + packed(target[0])
    return data[:16] + checksum(ends + struct.pack("!HH", socket.IPPROTO_TCP, len(data)) + data) + data[18:]


def packed(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def packet(source, target):
    """The same with the network's header."""
    data, ends = segment(source, target), packed(source[0]) + packed(target[0])
    if ":" in source[0]:
        return struct.pack("!IHBB", 0x60000000, len(data), socket.IPPROTO_TCP, 64) + ends + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 0, 0, 64, socket.IPPROTO_TCP, 0) + ends
    return head[:10] + checksum(head) + head[12:] + data


def forge(chosen):
    family = socket.AF_INET6 if ":" in chosen.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    sock.connect((chosen.address, 0))
    own, other = (sock.getsockname()[0], chosen.own_port), (chosen.address, chosen.port)
    if not chosen.link:
        sock.send(segment(own, other))
        return
    device, mac = chosen.link.split("/")
    kind = 0x86DD if family == socket.AF_INET6 else 0x0800
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(kind)) as link:
        for ends in ((own, other), (other, own), (own, other)):
            link.sendto(packet(*ends), (device, kind, 0, 1, bytes.fromhex(mac.replace(":", ""))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of = parser.add_subparsers(required=True)
    one = of.add_parser("serve")
    one.add_argument("name")
    one.add_argument("ports", type=int, nargs="+")
    one.add_argument("--transparent", action="store_true")
    one.add_argument("--onward", action="store_true")
    one.add_argument("--to-app", action="store_true")
    one.add_argument("--udp", action="store_true", help="answer datagrams, too")
    one.add_argument("--v4", action="store_true", help="over IPv4 alone")
    one.add_argument("--loopback", action="store_true", help="those of the own machine alone")
    one.set_defaults(run=serve)
    for name, run in (("dial", dial), ("ask", ask)):
        one = of.add_parser(name)
        one.add_argument("address")
        one.add_argument("port", type=int)
        one.add_argument("--tos", type=int, default=0)
        one.add_argument("--bytes", type=int, default=0)
        one.add_argument("--own-port", type=int, default=0, help="call from it, and let the other end close first")
        one.add_argument("--hold", action="store_true", help="go on only when a line is read")
        one.add_argument("--timeout", type=float, default=4)
        one.set_defaults(run=run)
    one = of.add_parser("forge")
    one.add_argument("address")
    one.add_argument("port", type=int)
    one.add_argument("--own-port", type=int, required=True)
    one.add_argument("--link", metavar="DEVICE/MAC", help="then its answer and one more, all sent to this neighbour")
    one.set_defaults(run=forge)
    chosen = parser.parse_args()
    chosen.run(chosen)


main()

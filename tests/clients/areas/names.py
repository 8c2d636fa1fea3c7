"""The DNS door, asked by dig, Node's c-ares, glibc and Python: what dnsmasq says comes through, hosts of peers are ours."""

import collections
import json
import os
import random
import re
import socket
import struct
import subprocess
import time

from cases import Area
from lab import HERE, LOOPBACK, Missing, find, listens, wait_for

area = Area("names")
V4, V6 = "240.240.126.35", "2001:2::f0f0:7e23"  # of `payments`, whatever the file


class Place:
    """A DNS server that a case asks: dnsmasq itself, or the door in front of it."""

    def __init__(self, port, direct):
        self.port, self.direct = port, direct

    def dig(self, *words):
        """dig's whole output."""
        argv = [find("dig"), f"@{LOOPBACK}", "-p", str(self.port), "+tries=1", "+time=5", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout

    def seen(self, *words):
        """What an answer says, without what differs by nature: ids, times, sizes, whether it is authoritative."""
        said = self.dig(*words)
        status = re.search(r"status: (\w+)", said)
        flags = re.search(r"flags: ([a-z ]*);", said)
        kept = [flag for flag in flags.group(1).split() if flag in ("tc", "rd", "ra", "cd")] if flags else []
        records = [line.split() for line in said.splitlines() if line and not line.startswith(";")]
        return (status and status.group(1), kept, sorted((name, kind, *rest) for name, _, _, kind, *rest in records))


@area.setup
def world(lab):
    dns, area.door = lab.port(), lab.port()
    many = [f"--host-record=many.test,10.1.0.{n}" for n in range(1, 101)]
    area.dnsmasq = [
        find("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
        "--log-facility=-", "--log-queries", f"--listen-address={LOOPBACK}", "--bind-interfaces", "--address=/#/", "--local-ttl=5",
        "--host-record=web.test,10.0.0.1,fd00::1", "--host-record=payments.test,10.0.0.9", "--cname=www.test,web.test",
        "--txt-record=txt.test,hello,there", "--mx-host=mail.test,web.test,10", "--srv-host=_http._tcp.srv.test,web.test,8080,1,10",
        "--ptr-record=1.0.0.10.in-addr.arpa,web.test", *many]
    upstream = lab.start("dnsmasq", [*area.dnsmasq, f"--port={dns}", f"--pid-file={lab.path('pid')}"], ready=dns)
    here = collections.namedtuple("World", "direct through upstream lab")
    if not lab.direct:
        area.sidecar = lab.sidecar("door", {
            "outbound": {"listen": f"{LOOPBACK}:{lab.port()}"},
            "dns": {"listen": f"{LOOPBACK}:{area.door}", "servers": [f"{LOOPBACK}:{dns}"]},
            "peers": {"payments": {"static": ["127.0.0.1:9"], "hosts": ["payments", "payments.test", "db:5432"]}}})
    area.world = here(Place(dns, True), Place(area.door, False), upstream, lab)
    return {"dns": area.world}


@area.case("dns")
def what_the_servers_say_comes_through(at):
    """Every type, existing and not, over UDP and TCP, with and without EDNS."""
    names = ["web.test A", "web.test AAAA", "web.test TXT", "www.test A", "www.test CNAME", "www.test AAAA", "txt.test TXT",
             "mail.test MX", "_http._tcp.srv.test SRV", "-x 10.0.0.1", "nobody.test A", "WeB.tEsT A"]
    ways = [[], ["+tcp"], ["+noedns"], ["+dnssec"], ["+cd"]]
    return {f"{name} {way}": at.seen(*name.split(), *way) for name in names for way in ways}


@area.case("dns")
def a_long_answer_is_truncated_and_comes_over_tcp(at):
    short = at.seen("many.test", "A", "+ignore", "+noedns")
    whole = at.seen("many.test", "A", "+noedns")
    assert "tc" in short[1] and len(whole[2]) == 100, (short[:2], len(whole[2]))
    return whole


@area.case("dns")
def c_ares_reads_what_comes(at):
    """Node's own resolver, not glibc's."""
    kinds = [("A", "web.test"), ("AAAA", "web.test"), ("CNAME", "www.test"), ("TXT", "txt.test"), ("MX", "mail.test"),
             ("SRV", "_http._tcp.srv.test"), ("A", "many.test"), ("A", "nobody.test"), ("PTR", "1.0.0.10.in-addr.arpa")]
    return {f"{kind} {name}": sorted_answer(ares(at.port, kind, name)) for kind, name in kinds}


def ares(port, kind, name):
    argv = [find("node"), HERE / "callers" / "names.mjs", f"{LOOPBACK}:{port}", kind, name]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout)


def sorted_answer(found):
    return sorted(map(str, found)) if isinstance(found, list) else found


@area.case("dns", only="through")
def hosts_of_peers_are_ours(at):
    for name in ("payments", "PAYMENTS", "payments."):
        assert V4 in at.dig(name, "A"), at.dig(name, "A")
        assert ares(at.port, "A", name) == [V4]
    before = area.world.upstream.output().count("payments")
    assert "10.0.0.9" not in at.dig("payments.test", "A"), "a peer's name is the peer's, whatever the servers know"
    for kind in ("HTTPS", "SVCB", "MX", "TXT", "SOA"):
        status, _, records = at.seen("payments", kind)
        assert status == "NOERROR" and not [record for record in records if record[1] == kind and kind != "SOA"], (kind, records)
    assert ares(at.port, "MX", "payments") == "ENODATA"
    assert ares(at.port, "PTR", f"{'.'.join(reversed(V4.split('.')))}.in-addr.arpa") == ["payments"]
    assert "payments." in at.dig("-x", V6) and "NXDOMAIN" in at.dig("-x", "240.240.1.1")
    assert area.world.upstream.output().count("payments") == before, "no server was asked"


@area.case("dns", only="through")
def an_answer_is_kept_for_its_time_and_asked_for_again(at):
    # The door mixes the case of letters.
    asked = lambda: area.world.upstream.output().lower().count("query[txt] txt.test")
    at.dig("txt.test", "TXT")
    before = asked()
    times = [int(re.search(r"^txt\.test\.\s+(\d+)", at.dig("txt.test", "TXT"), re.M).group(1)) for _ in range(5)]
    assert asked() == before and max(times) <= 5, times
    wait_for(lambda: at.dig("txt.test", "TXT") and asked() > before, "the time to live is over", 15)


@area.case("dns", only="through", within=90)
def the_last_good_answer_stays_while_the_server_is_gone(at):
    assert "10.0.0.1" in at.dig("www.test", "A")
    area.world.upstream.stop()
    try:
        wait_for(lambda: "Stale Answer" in at.dig("www.test", "A"), "it is given as an old one", 20)
        said = at.dig("www.test", "A")
        assert "10.0.0.1" in said and "NOERROR" in said, said
        said = at.dig("never-asked.test", "A")
        assert "SERVFAIL" in said and "No Reachable Authority" in said, said
        assert V4 in at.dig("payments", "A")
    finally:
        port = area.world.direct.port
        upstream = area.world.lab.start(
            "dnsmasq", [*area.dnsmasq, f"--port={port}", f"--pid-file={area.world.lab.path('pid')}"], ready=port)
        area.world = area.world._replace(upstream=upstream)
    wait_for(lambda: "10.0.0.1" in at.dig("www.test", "A") and "Stale" not in at.dig("www.test", "A"), "fresh again", 20)


@area.case("dns", only="through", within=120)
def bent_packets_and_a_flood_do_no_harm(at):
    """20 000 packets that were questions once, then names without end; the door answers, and its memory is bounded."""
    chance = random.Random(7)
    question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 1) + b"\x08payments\0\0\1\0\1" + b"\0\0\x29\x04\xd0" + bytes(6)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.connect((LOOPBACK, at.port))
        line.setblocking(False)
        for n in range(20_000):
            packet = bytearray(question)
            for _ in range(chance.randrange(1, 5)):
                packet[chance.randrange(len(packet))] = chance.randrange(256)
            send(line, packet[:chance.randrange(1, len(packet) + 1)] if n % 3 == 0 else packet)
        before = area.sidecar.rss()
        for n in range(20_000):
            label = f"n{n:08d}x{'y' * 40}".encode()
            send(line, struct.pack(">6H", n, 0x100, 1, 0, 0, 0) + bytes([len(label)]) + label + b"\4test\0\0\1\0\1")
    wait_for(lambda: V4 in at.dig("payments", "A"), "it answers after the flood", 30)
    grown = area.sidecar.rss() - before
    assert grown < 24 << 20, f"{grown >> 20} MiB more"
    assert area.sidecar.alive() and "panicked" not in area.sidecar.output()
    _, metrics = area.sidecar.get("/metrics")
    kept = int(re.search(r"^outrigger_dns_cache_bytes (\d+)", metrics, re.M).group(1))
    assert kept <= 4 << 20, kept


def send(line, packet):
    """Sends without leaving the door behind by more than its socket holds, and reads what came."""
    try:
        line.send(packet)
    except OSError:
        time.sleep(0.001)
    try:
        while True:
            line.recv(4096)
    except OSError:
        pass


SCRIPT = """
set -e
ip link set lo up
ip link add va type veth peer name vb
ip addr add 10.99.0.1/24 dev va
ip link set va up
ip link set vb up
ip route add default dev va
mount --make-rprivate /
mount --bind "$1" /etc/resolv.conf
mount --bind "$2" /etc/nsswitch.conf
mount --bind "$3" /etc/hosts
exec sleep infinity
"""


class Room:
    """A network of its own whose resolv.conf names the door; needs root."""

    def __init__(self, lab):
        if os.geteuid() != 0:
            raise Missing("a network of its own needs root")
        files = {"resolv.conf": f"nameserver {LOOPBACK}\nsearch default.svc.cluster.local test\noptions ndots:5 timeout:2\n",
                 "nsswitch.conf": "hosts: files dns\n", "hosts": ""}
        for name, text in files.items():
            lab.path(name).write_text(text)
        argv = [find("unshare"), "--mount", "--net", "sh", "-c", SCRIPT, "room", *(lab.path(name) for name in files)]
        self.room = lab.start("room", argv)
        wait_for(lambda: self.run("cat", "/etc/resolv.conf").stdout == files["resolv.conf"] and self.run("cat", "/etc/hosts").stdout == "",
                 "the room is furnished")
        lab.start("dnsmasq-room", self.inside([*area.dnsmasq, "--port=5300", f"--pid-file={lab.path('room-pid')}"]))
        wait_for(lambda: "10.0.0.1" in self.run(find("dig"), f"@{LOOPBACK}", "-p", "5300", "web.test").stdout, "dnsmasq is up")
        file = lab.path("room.yaml")
        file.write_text(json.dumps({
            "service": "room", "admin": f"unix:{lab.path('room.sock')}", "outbound": {"listen": f"{LOOPBACK}:15001"},
            "dns": {"listen": f"{LOOPBACK}:53", "servers": [f"{LOOPBACK}:5300"]},
            "peers": {"payments": {"dns": "payments.test:8080", "hosts": ["payments", "shop.internal"]}}}))
        self.sidecar = lab.start("sidecar-room", self.inside([lab.binary, "run", "-c", file]))
        wait_for(lambda: V4 in self.run("getent", "ahostsv4", "payments").stdout, "the door is open")
        self.admin = lab.path("room.sock")

    def inside(self, argv):
        return [find("nsenter"), f"--target={self.room.child.pid}", "--mount", "--net", *map(str, argv)]

    def run(self, *argv):
        return subprocess.run(self.inside(argv), capture_output=True, text=True, timeout=60)

    def python(self, code):
        return self.run("/usr/bin/python3", "-c", code).stdout.strip()


@area.case("dns", only="through", within=120)
def glibc_and_python_behind_a_resolv_conf_of_their_own(at):
    """Search lists, both families, and the sidecar itself, which must not ask its own door."""
    room = Room(area.world.lab)
    addresses = "import socket; print(sorted({a[4][0] for a in socket.getaddrinfo(%r, 80)}))"
    assert room.python(addresses % "payments") == str([V4]), "without IPv6 there is no IPv6 address"
    assert room.python(addresses % "web") == str(["10.0.0.1", "fd00::1"]), "the search list's domain is asked for"
    assert room.python(addresses % "www.test") == str(["10.0.0.1", "fd00::1"])
    assert room.python("import socket; print(socket.gethostbyaddr(%r)[0])" % V4) == "payments"
    assert "Name or service not known" in room.run("/usr/bin/python3", "-c", addresses % "nobody").stderr
    # A name with one of the search domains costs no detour over the servers.
    assert "shop.internal" in room.run("getent", "ahosts", "shop.internal").stdout
    asked = area.world.lab.path("dnsmasq-room.log").read_text().lower()
    assert "nobody.default.svc" in asked and "payments.default" not in asked and "shop.internal" not in asked, asked

    room.run("ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "va", "nodad")
    room.run("ip", "-6", "route", "add", "default", "dev", "va")
    assert room.python(addresses % "payments") == str(sorted([V6, V4])), "with IPv6 there is one"

    # Discovery has the real address: it asked the server and not the door.
    state = room.run(find("curl"), "-s", "--unix-socket", room.admin, "http://localhost/state").stdout
    peer = next(peer for peer in json.loads(state)["peers"] if peer["name"] == "payments")
    assert [endpoint["address"] for endpoint in peer["endpoints"]] == ["10.0.0.9:8080"], peer


@area.case("dns", only="through", within=60)
def a_sidecar_whose_only_server_is_its_own_door_says_so(at):
    room = Room.__new__(Room)
    lab = area.world.lab
    if os.geteuid() != 0:
        raise Missing("a network of its own needs root")
    (lab.path("self.conf")).write_text(f"nameserver {LOOPBACK}\n")
    for name in ("self.nss", "self.hosts"):
        lab.path(name).write_text("hosts: files dns\n" if name == "self.nss" else "")
    argv = [find("unshare"), "--mount", "--net", "sh", "-c", SCRIPT, "room", lab.path("self.conf"), lab.path("self.nss"), lab.path("self.hosts")]
    room.room = lab.start("self-room", argv)
    wait_for(lambda: room.run("cat", "/etc/resolv.conf").stdout == f"nameserver {LOOPBACK}\n", "the room is furnished")
    file = lab.path("self.yaml")
    file.write_text(json.dumps({
        "service": "room", "outbound": {"listen": f"{LOOPBACK}:15001"}, "dns": {"listen": f"{LOOPBACK}:53"},
        "peers": {"payments": {"dns": "payments.test:8080", "hosts": ["payments", "payments.test"]}}}))
    lab.start("self-sidecar", room.inside([lab.binary, "run", "-c", file]))
    log = lab.path("self-sidecar.log")
    wait_for(lambda: "own DNS door" in log.read_text(), "discovery refuses to ask its own door", 20)
    wait_for(lambda: V4 in room.run("getent", "ahostsv4", "payments").stdout, "the door answers all the same", 20)
    assert "own DNS door" in room.run(find("dig"), "web.test").stdout

"""Hosts with hard-coded names and addresses, sidecars that nobody was told of: what works as it did without them, and
what nobody on the network can read any more."""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "clients")]

import hosts
from lab import Lab, find, wait_for

ROOT = HERE.parents[2]
SERVERS = HERE / "servers.py"
# Python with the libraries that are pinned in tests/clients.
PYTHON = HERE.parents[1] / "clients" / ".venv" / "bin" / "python"
# Where the FTP server waits for data connections: a port each, because it reuses none at once.
PASSIVE = range(60000, 60010)
# In everything that is sent between sidecars, and so what must not be seen on the way.
SECRET = "the-secret-that-nobody-reads"
NAMES = """10.88.0.2 shop.mesh shop-0.shop.mesh
fd88::2 shop.mesh
10.88.0.3 shop.mesh shop-1.shop.mesh
fd88::3 shop.mesh
10.88.0.4 data.mesh
10.88.0.5 out.example
fd88::5 out.example
10.88.0.6 seen.mesh
"""
CASES = []


def case(function):
    CASES.append(function)
    return function


class Mesh:
    """web -> shop (two hosts), data, seen (TPROXY), all with sidecars; out.example has none."""

    def __init__(self, lab):
        self.lab = lab
        hosts.bridge()
        self.web, self.shop0, self.shop1, self.data, self.out, self.seen = (
            hosts.Host(lab, name, number, NAMES)
            for number, name in enumerate(["web", "shop-0", "shop-1", "data", "out", "seen"], start=1))
        self.six = hosts.Host(lab, "six", 7, NAMES, families=(6,))
        self.issue()
        self.watch()
        self.peers = {
            "shop": {"static": [f"{host.v4}:8080" for host in (self.shop0, self.shop1)], "hosts": ["shop.mesh", "shop.unlisted"],
                     "protocol": "http1", "balance": "round-robin", "mtls": {"id": "spiffe://test/shop"}},
            "shop6": {"static": [f"[{host.v6}]:8080" for host in (self.shop0, self.shop1)], "hosts": [],
                      "mtls": {"id": "spiffe://test/shop"}},
            "data": {"static": [f"{self.data.v4}:{port}" for port in (8080, 21, 2525, 4222, 6379, 3306, 5432, 50051, *PASSIVE)], "hosts": [],
                     "mtls": {"id": "spiffe://test/data"}},
            "seen": {"static": [f"{self.seen.v4}:{port}" for port in (8080, 2525)], "hosts": [],
                     "mtls": {"id": "spiffe://test/seen"}},
            "seen6": {"static": [f"[{self.seen.v6}]:{port}" for port in (8080, 2525)], "hosts": [],
                      "mtls": {"id": "spiffe://test/seen"}},
        }
        self.sidecars = {}
        for host, service in ((self.web, "web"), (self.shop0, "shop"), (self.shop1, "shop"), (self.data, "data")):
            door = {"dns": {"listen": ["127.0.0.1:15053", "[::1]:15053"]}, "redirect": {"mode": "redirect", "dns": "all"}}
            self.apply(host, service, door if host is self.web else None)
            self.sidecar(host)
        self.apply(self.six, "web")
        self.sidecar(self.six)
        self.app(self.six, "::1")
        self.app(self.web, "127.0.0.1")
        self.app(self.shop0, "127.0.0.1")
        self.app(self.shop1, "127.0.0.1")
        self.app(self.data, "0.0.0.0")
        self.app(self.out, "::", 80)

    def issue(self):
        """A CA, and an identity for each service."""
        ca = lambda *argv: subprocess.run([self.lab.binary, "ca", *argv], check=True, capture_output=True, cwd=self.lab.folder)
        ca("init", "--trust-domain", "test")
        for service in ("web", "shop", "data", "seen"):
            ca("issue", "--service", service)
        hosts.readable(self.lab.path("tls"))

    def watch(self):
        """Writes every packet on the bridge to a file."""
        self.seen_on_the_way = self.lab.path("packets")
        watcher = ("import socket\nwire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))\n"
                   "wire.bind(('br0', 0))\nimport sys\n"
                   "with open(sys.argv[1], 'wb', 0) as out:\n    while True: out.write(wire.recv(70000))\n")
        run = ["ip", "link", "set", "br0", "promisc", "on"]
        hosts.run(*run)
        self.lab.start("watcher", [sys.executable, "-c", watcher, self.seen_on_the_way], ready=self.seen_on_the_way.exists)

    def apply(self, host, service, more=None):
        """The file of a sidecar, and the rules of its host."""
        tls = self.lab.path("tls") / service
        config = {
            "service": service, "grace": "5s", "redirect": {"mode": "redirect"}, "telemetry": {"access-log": {"log": "all"}},
            "identity": {"certificate": str(tls / "cert.pem"), "key": str(tls / "key.pem"), "roots": str(tls / "roots.pem")},
            "inbound": {"app": "[::1]:8080" if host is self.six else "127.0.0.1:8080"}, "peers": self.peers, **(more or {})}
        file = self.lab.path(f"{host.name}.yaml")
        file.write_text(json.dumps(config, indent=1))
        host.run(self.lab.binary, "redirect", "apply", "-c", file)

    def sidecar(self, host, privileges=()):
        file = self.lab.path(f"{host.name}.yaml")
        user = ("setpriv", "--reuid", str(hosts.SIDECAR), "--regid", str(hosts.SIDECAR), "--clear-groups", *privileges)
        ready = lambda: host.listens(15006) and host.listens(15001)  # both on 127.0.0.1, which an IPv6 host has too
        self.sidecars[host.name] = host.start("sidecar", [self.lab.binary, "run", "-c", file], ready=ready, user=user)
        return self.sidecars[host.name]

    def app(self, host, at, port=8080):
        argv = [sys.executable, SERVERS, "app", host.name, port, at]
        ready = lambda: host.listens(port, "::1" if at == "::1" else "127.0.0.1")
        return host.start("app", argv, ready=ready, user=("env",) if port < 1024 else None)

    def state(self, host):
        return json.loads(host.run("curl", "-sS", "http://127.0.0.1:15000/state"))

    def log(self, host):
        return self.sidecars[host.name].output()


def answer(host, url, *more):
    return json.loads(host.call("curl", "-sS", "--max-time", "10", *more, url))


@case
def http_by_name_is_balanced_and_proves_who_calls(mesh):
    names = [answer(mesh.web, f"http://shop.mesh:8080/{SECRET}") for _ in range(20)]
    assert {one["name"] for one in names} == {"shop-0", "shop-1"}, names
    assert all("URI=spiffe://test/web" in one["from"] for one in names), names
    one = answer(mesh.web, f"http://shop.mesh:8080/{SECRET}", "--http2-prior-knowledge")
    assert one["name"].startswith("shop-"), one


@case
def who_is_dialled_by_address_is_reached_and_nobody_else(mesh):
    for url, want in (("http://shop-0.shop.mesh:8080/", "shop-0"), (f"http://{mesh.shop1.v4}:8080/", "shop-1"),
                      ("http://shop-1.shop.mesh:8080/", "shop-1")):
        for _ in range(5):
            one = answer(mesh.web, url + SECRET)
            assert one["name"] == want and "spiffe://test/web" in one["from"], (url, one)
    assert f"original={mesh.shop1.v4}:8080" in mesh.log(mesh.web)


@case
def over_ipv6_too(mesh):
    for host in (mesh.shop0, mesh.shop1):
        one = answer(mesh.web, f"http://[{host.v6}]:8080/{SECRET}", "-6")
        assert one["name"] == host.name and "spiffe://test/web" in one["from"], one
    assert answer(mesh.web, f"http://[{mesh.out.v6}]/")["name"] == "out"
    # A name with addresses of both families leads to all of its peer, whichever of them was dialled.
    for family, dialled in (("-4", mesh.shop0.v4), ("-6", f"[{mesh.shop0.v6}]")):
        names = {answer(mesh.web, f"http://shop.mesh:8080/{SECRET}{family}", family)["name"] for _ in range(20)}
        assert names == {"shop-0", "shop-1"}, (family, names)
        assert f"original={dialled}:8080" in mesh.log(mesh.web)


@case
def a_host_that_has_ipv6_alone(mesh):
    one = answer(mesh.six, f"http://[{mesh.shop0.v6}]:8080/{SECRET}")
    assert one["name"] == "shop-0" and "spiffe://test/web" in one["from"], one
    assert answer(mesh.six, f"http://[{mesh.out.v6}]/")["name"] == "out"
    assert mesh.out.call("curl", "-sS", "--fail", f"http://[{mesh.six.v6}]:8080/", ok=False) == 22


@case
def a_virtual_address_stands_for_all_of_its_peer(mesh):
    asked = mesh.web.call(find("dig"), "@127.0.0.1", "-p", "15053", "+short", "shop.mesh").split()
    assert len(asked) == 1 and asked[0].startswith("240.240."), asked
    names = [answer(mesh.web, f"http://{asked[0]}:8080/{SECRET}") for _ in range(20)]
    assert {one["name"] for one in names} == {"shop-0", "shop-1"}, names
    assert all("spiffe://test/web" in one["from"] for one in names), names


@case
def a_name_that_no_server_knows_leads_to_its_peer(mesh):
    # No host has it in a file, and nobody answers at the name server of resolv.conf.
    names = [answer(mesh.web, f"http://shop.unlisted:8080/{SECRET}") for _ in range(20)]
    assert {one["name"] for one in names} == {"shop-0", "shop-1"}, names
    assert all("spiffe://test/web" in one["from"] for one in names), names
    # Whichever server is asked, over whatever.
    for server in ("192.0.2.53", "2001:db8::53"):
        for more in ([], ["+tcp"]):
            asked = mesh.web.call(find("dig"), f"@{server}", *more, "+short", "shop.unlisted").split()
            assert len(asked) == 1 and asked[0].startswith("240.240."), (server, more, asked)
    assert mesh.shop0.call("curl", "-sS", "http://shop.unlisted:8080/", ok=False) == 6


@case
def the_service_calls_itself(mesh):
    for url in (f"http://{mesh.shop0.v4}:8080/", f"http://[{mesh.shop0.v6}]:8080/", "http://shop-0.shop.mesh:8080/"):
        one = answer(mesh.shop0, url + SECRET)
        assert one["name"] == "shop-0" and "spiffe://test/shop" in one["from"], (url, one)
    one = answer(mesh.web, f"http://shop-0.shop.mesh:8080/call/{mesh.shop0.v4}:8080/{SECRET}")
    assert one["name"] == "shop-0" and "spiffe://test/shop" in one["from"], one


def spoken(mesh, port):
    """What the caller's sidecar remembers of a port of `data`."""
    return {one["address"]: one.get("spoken") for one in mesh.state(mesh.web)["captured"]}.get(f"{mesh.data.v4}:{port}")


@case
def servers_that_speak_first_do_not_wait(mesh):
    mesh.data.start("smtp", [sys.executable, SERVERS, "smtp", 2525], ready=lambda: mesh.data.listens(2525))
    mail = (f"import smtplib, time\nstart = time.monotonic()\nmail = smtplib.SMTP('data.mesh', 2525, timeout=10)\n"
            f"print(time.monotonic() - start)\nmail.sendmail('a@a', ['b@b'], '{SECRET}\\n' * 100)\nmail.quit()\n")
    took = float(mesh.web.call(sys.executable, "-c", mail))
    assert took < 0.15, f"the greeting took {took:.3f} s"
    assert spoken(mesh, 2525) == "server-first"


@case
def nats(mesh):
    mesh.data.start("nats", [find("nats-server"), "-a", "0.0.0.0", "-p", "4222"], ready=lambda: mesh.data.listens(4222))
    script = mesh.lab.path("talk.py")
    script.write_text(f"""import asyncio, nats, sys

async def answers(wire):
    async def upper(asked):
        await asked.respond(asked.data.upper())
    await wire.subscribe("upper", cb=upper)
    await wire.flush()
    print("ready", flush=True)
    await asyncio.sleep(3600)

async def asks(wire):
    print((await wire.request("upper", b"{SECRET}", timeout=10)).data.decode())
    many = await wire.subscribe("many.*")
    for n in range(200):
        await wire.publish(f"many.{{n}}", b"{SECRET}" * 500)
    print(sum([len((await many.next_msg(10)).data) for n in range(200)]))
    await wire.drain()

async def main():
    wire = await nats.connect("nats://data.mesh:4222", connect_timeout=10, allow_reconnect=False)
    await {{"answers": answers, "asks": asks}}[sys.argv[1]](wire)

asyncio.run(main())
""")
    other = mesh.shop0.start("answers", [PYTHON, "-u", script, "answers"])
    wait_for(lambda: "ready" in other.output() or not other.alive(), "the other client has subscribed")
    assert mesh.web.call(PYTHON, script, "asks").split() == [SECRET.upper(), str(200 * 500 * len(SECRET))], other.output()
    assert spoken(mesh, 4222) == "server-first"
    other.stop()


@case
def ftp(mesh):
    folder = mesh.lab.path("ftp")
    folder.mkdir()
    lines = f"{SECRET}\n" * 10_000
    (folder / "there").write_text(lines)
    (folder / "empty").touch()
    argv = [PYTHON, SERVERS, "ftp", folder, PASSIVE[0], PASSIVE[-1]]
    mesh.data.start("ftp", argv, ready=lambda: mesh.data.listens(21), user=("env",))
    curl = ["curl", "-sS", "--fail", "--max-time", "10"]
    assert sorted(mesh.web.call(*curl, "--list-only", "ftp://data.mesh/").split()) == ["empty", "there"]
    assert spoken(mesh, 21) == "server-first"
    # The server speaks first on the data connection, the client does, and nobody at all; by EPSV and by PASV.
    for way in ([], ["--disable-epsv"]):
        assert mesh.web.call(*curl, *way, "ftp://data.mesh/there") == lines
        assert mesh.web.call(*curl, *way, "ftp://data.mesh/empty") == ""
        for name in ("there", "empty"):
            mesh.web.call(*curl, *way, "-T", folder / name, f"ftp://data.mesh/{name}-again")
            assert (folder / f"{name}-again").read_bytes() == (folder / name).read_bytes(), name
            (folder / f"{name}-again").unlink()
    assert any(spoken(mesh, port) for port in PASSIVE), mesh.state(mesh.web)["captured"]


@case
def redis(mesh):
    server = [find("redis-server"), "--port", "6379", "--bind", mesh.data.v4, "127.0.0.1", "--save", "", "--protected-mode", "no"]
    mesh.data.start("redis", server, ready=lambda: mesh.data.listens(6379))
    cli = [find("redis-cli"), "-h", "data.mesh"]
    assert mesh.web.call(*cli, "SET", "k", SECRET).strip() == "OK"
    assert mesh.web.call(*cli, "GET", "k").strip() == SECRET


@case
def mariadb(mesh):
    data = mesh.lab.path("mariadb")
    common = ["--no-defaults", f"--datadir={data}", "--user=root"]
    hosts.run(find("mariadb-install-db"), *common, "--auth-root-authentication-method=normal", "--skip-test-db")
    sql = mesh.lab.path("grant.sql")
    sql.write_text("CREATE USER 'test'@'%';\nGRANT ALL ON *.* TO 'test'@'%';\n")
    mesh.data.start("mariadb", [find("mariadbd"), *common, "--port=3306", "--bind-address=0.0.0.0", f"--init-file={sql}",
                                "--skip-name-resolve", f"--socket={data}/s", f"--pid-file={data}/p"],
                    ready=lambda: mesh.data.listens(3306), user=("env",))
    client = [find("mariadb"), "--no-defaults", "-h", "data.mesh", "-u", "test", "--protocol=tcp", "--skip-ssl", "-N", "-e"]
    start = time.monotonic()
    assert mesh.web.call(*client, f"SELECT '{SECRET}', 6*7").split() == [SECRET, "42"]
    assert time.monotonic() - start < 2


@case
def postgres(mesh):
    import pwd
    data, who = mesh.lab.path("postgres"), pwd.getpwnam("postgres")
    data.mkdir()
    os.chown(data, who.pw_uid, who.pw_gid)
    folder = "/usr/lib/postgresql/*/bin"
    user = ("setpriv", "--reuid", str(who.pw_uid), "--regid", str(who.pw_gid), "--clear-groups")
    hosts.run(*user, find(f"{folder}/initdb"), "-D", data, "-A", "trust", "-U", "test", "--no-sync", cwd="/")
    with open(data / "pg_hba.conf", "a") as rules:
        rules.write("host all all 0.0.0.0/0 trust\n")
    server = [find(f"{folder}/postgres"), "-D", data, "-c", "listen_addresses=*", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    mesh.data.start("postgres", server, ready=lambda: mesh.data.listens(5432), user=user, cwd="/")
    client = [find(f"{folder}/psql"), "-X", "-A", "-t", "-d", "host=data.mesh user=test dbname=postgres sslmode=prefer", "-c"]
    assert mesh.web.call(*client, f"SELECT '{SECRET}', 6*7").strip() == f"{SECRET}|42"


@case
def grpc(mesh):
    serve = ("import grpc, concurrent.futures\n"
             "echo = grpc.unary_unary_rpc_method_handler(lambda asked, _: asked + b'!')\n"
             "many = grpc.stream_stream_rpc_method_handler(lambda asked, _: (one + b'!' for one in asked))\n"
             "server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))\n"
             "server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('t.T', {'Echo': echo, 'Many': many}),))\n"
             "server.add_insecure_port('0.0.0.0:50051'); server.start(); server.wait_for_termination()\n")
    mesh.data.start("grpc", [PYTHON, "-c", serve], ready=lambda: mesh.data.listens(50051))
    call = (f"import grpc\nwith grpc.insecure_channel('data.mesh:50051') as channel:\n"
            f"    print(channel.unary_unary('/t.T/Echo')(b'{SECRET}', timeout=10).decode())\n"
            f"    print(len(list(channel.stream_stream('/t.T/Many')(iter([b'{SECRET}'] * 50), timeout=10))))\n")
    assert mesh.web.call(PYTHON, "-c", call).split() == [SECRET + "!", "50"]


@case
def what_is_outside_is_reached_as_before(mesh):
    one = answer(mesh.web, "http://out.example/x")
    assert one["name"] == "out" and one["from"] == "", one
    # Refused is a reset here as soon as something is said: no answer of a proxy.
    assert mesh.web.call("curl", "-sS", "http://out.example:81/", ok=False) in (7, 56)
    quiet = ("import socket\ntry: print(repr(socket.create_connection(('out.example', 81), 10).recv(1)))\n"
             "except ConnectionResetError: print('reset')\n")
    assert mesh.web.call(sys.executable, "-c", quiet).strip() == "reset"
    # And who is no sidecar is not let in.
    assert mesh.out.call("curl", "-sS", "--fail", f"http://{mesh.shop0.v4}:8080/", ok=False) in (22, 52, 56)
    assert mesh.out.call("curl", "-sS", "--fail", f"http://{mesh.data.v4}:6379/", ok=False) in (22, 52, 56)


@case
def it_is_explained_where_connections_go(mesh):
    calls = ((f"{mesh.shop1.v4}:8080", "http://nobody.example/", "shop"), (f"{mesh.out.v4}:80", "http://shop.mesh:8080/", "shop"),
             (f"[{mesh.shop0.v6}]:8080", "http://nobody.example/", "shop6"), (f"{mesh.data.v4}:6379", None, "data"),
             (f"{mesh.out.v4}:80", "http://out.example/", "none"))
    for number, (to, url, peer) in enumerate(calls):
        argv = [mesh.lab.binary, "explain", *([url] if url else []), "--dialled", to, "--admin", "127.0.0.1:15000", "--json",
                "-c", mesh.lab.path("web.yaml")]
        facts = json.loads(mesh.web.run(*argv))["facts"]
        told = next(fact["text"] for fact in facts if fact["about"] == "peer")
        assert told.replace(",", " ").split()[0] == peer, (to, url, facts)
        if url:
            # And that is where it goes.
            host = urllib.parse.urlsplit(url).netloc
            mesh.web.call("curl", "-sS", "-o", "/dev/null", "-H", f"host: {host}", f"http://{to}/explained-{number}")
            went = f"peer={peer if peer != 'none' else to} "
            lines = lambda: [line for line in mesh.log(mesh.web).splitlines() if f"path=/explained-{number} " in line]
            line = wait_for(lines, "the access line")[0]
            assert went in line and f"original={to} " in line, (to, url, line)


@case
def own_listeners_are_not_dialled(mesh):
    told = mesh.web.call("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{mesh.web.v4}:15006/")
    assert told in ("508", "403"), told


@case
def nothing_is_sent_in_plaintext_to_a_host_of_the_mesh(mesh):
    """A port that the peer's addresses do not have."""
    talk = ("import socket, sys\ntry:\n    with socket.create_connection((sys.argv[1], 7777), timeout=20) as s:\n"
            "        s.sendall(b'\\0\\1' + sys.argv[2].encode())\n        print(s.recv(100))\nexcept ConnectionResetError: print('reset')\n")
    marker = "never-to-be-seen-on-the-way"
    assert mesh.web.call(sys.executable, "-c", talk, mesh.data.v4, marker).strip() == "reset"
    asked = mesh.web.call("curl", "-sS", "--max-time", "10", f"http://{mesh.data.v4}:7777/{marker}")
    assert "address_refused" in asked and "peer `data`" in asked, asked
    # By its name it is a peer's, and goes to that.
    assert answer(mesh.web, f"http://shop.mesh:7777/{marker}")["name"].startswith("shop-")
    assert mesh.log(mesh.web).count(f"original={mesh.data.v4}:7777 reason=address_refused") == 1, mesh.log(mesh.web)[-3000:]
    answer(mesh.web, "http://out.example/after-all-that")
    wait_for(lambda: b"after-all-that" in mesh.seen_on_the_way.read_bytes(), "the watcher has seen what came later")
    assert marker.encode() not in mesh.seen_on_the_way.read_bytes(), "plaintext on the wire"


@case
def what_a_sidecar_sends_does_not_come_back_to_it(mesh):
    """The rules let somebody else go: each call comes back once, and ends."""
    host = hosts.Host(mesh.lab, "astray", 8, NAMES)
    mesh.apply(host, "web")
    file = mesh.lab.path("astray.yaml")
    ready = lambda: host.listens(15006) and host.listens(15001)
    talk = ("import socket, sys\ntry:\n    with socket.create_connection((sys.argv[1], 80), timeout=10) as s:\n"
            "        if len(sys.argv) > 2: s.sendall(bytes.fromhex(sys.argv[2]))\n        print(s.recv(100))\n"
            "except ConnectionResetError: print('reset')\n")
    hello = ssl.MemoryBIO()
    context = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="nobody.mesh")
    with contextlib.suppress(ssl.SSLWantReadError):
        context.do_handshake()
    said = [[], [b"*1\r\n$4\r\nPING\r\n".hex()], [hello.read().hex()]]

    def came():
        pages = host.run("curl", "-sS", "http://127.0.0.1:15000/metrics")
        return int(re.search(r'^outrigger_door_connections_accepted_total{door="outbound"} (\d+)', pages, re.M)[1])

    # By the file the rules let user 1337 go and this is root; then it is 1337 and the rules have been given another.
    for user, more, most in ((("env",), [], 3), (None, ["--uid", "1400"], 40)):
        host.run(mesh.lab.binary, "redirect", "apply", "-c", file, *more)
        who = user or ("setpriv", "--reuid", str(hosts.SIDECAR), "--regid", str(hosts.SIDECAR), "--clear-groups")
        sidecar = host.start(f"sidecar-{most}", [mesh.lab.binary, "run", "-c", file], ready=ready, user=who)
        before = came()
        for address in (mesh.out.v4, mesh.out.v6):
            for what in said:
                got = host.call(sys.executable, "-c", talk, address, *what).strip()
                assert got in ("reset", "b''"), (address, what, got)
                assert came() - before <= most, (came() - before, sidecar.output()[-2000:])
                # Once it is certain, at once.
                before, most = came(), 3
            before = came()
            code = host.call("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", f"http://{at(address)}/", ok=False)
            assert code != 28, "curl waited in vain"
            assert came() - before <= 6, (came() - before, sidecar.output()[-2000:])
            before = came()
        told = "this sidecar is user 0, group 0: unless `apply` was given `--uid 0`, its own connections would be brought back" in sidecar.output()
        assert told == (user is not None), sidecar.output()
        assert " reason=looped " in sidecar.output(), sidecar.output()
        sidecar.stop()


def at(address):
    return f"[{address}]" if ":" in address else address


@case
def the_app_sees_its_caller_by_tproxy(mesh):
    mesh.apply(mesh.seen, "seen", {"redirect": {"mode": "tproxy"},
        "inbound": {"app": "127.0.0.1:8080", "routes": [{"match": {"path": f"/{SECRET}"}, "timeout": {"request": "5s"}}]}})
    refused = mesh.seen.call("env", mesh.lab.binary, "run", "-c", mesh.lab.path("seen.yaml"), ok=False)
    assert refused == 1, refused
    mesh.sidecar(mesh.seen, ("--inh-caps", "+net_raw", "--ambient-caps", "+net_raw"))
    mesh.app(mesh.seen, "::")
    mesh.seen.start("smtp", [sys.executable, SERVERS, "smtp", 2525], ready=lambda: mesh.seen.listens(2525))
    greeted = "import socket, sys; print(socket.create_connection((sys.argv[1], 2525), 10).recv(100).decode())"
    assert answer(mesh.web, f"http://seen.mesh:8080/{SECRET}")["client"] == mesh.web.v4
    for there, families in ((mesh.seen.v4, "v4"), (mesh.seen.v6, "v6")):
        for host in (mesh.web, mesh.shop0, mesh.web):
            caller, name = getattr(host, families), f"[{there}]" if ":" in there else there
            one = answer(host, f"http://{name}:8080/{SECRET}")
            assert one["client"] == caller and "spiffe://test/" in one["from"], one
            # A port that the file does not list, and bytes that nobody looks into.
            assert host.call(sys.executable, "-c", greeted, there).strip() == f"220 mail ready for {caller}"
        one = answer(mesh.seen, f"http://{name}:8080/{SECRET}")
        assert one["name"] == "seen" and "spiffe://test/seen" in one["from"], one
    assert answer(mesh.six, f"http://[{mesh.seen.v6}]:8080/{SECRET}")["client"] == mesh.six.v6


@case
def a_callers_port_is_not_taken_to_call_the_app_from_its_address(mesh):
    # By TPROXY both connections have its address and the app's: with one port too they would be the same one.
    narrow = "echo 50000 50009 > /proc/sys/net/ipv4/ip_local_port_range"
    for host in (mesh.web, mesh.seen):
        host.run("sh", "-c", narrow)
    held = ("import socket\nheld = [socket.create_connection(('seen.mesh', 2525), 5) for _ in range(4)]\n"
            "for wire in held:\n    wire.settimeout(5)\n    print(wire.recv(100).decode().strip())\n")
    try:
        said = mesh.web.call(sys.executable, "-c", held).splitlines()
    finally:
        for host in (mesh.web, mesh.seen):
            host.run("sh", "-c", narrow.replace("50000 50009", "32768 60999"))
    assert said == [f"220 mail ready for {mesh.web.v4}"] * 4, said


def under_load(mesh, seconds, meanwhile):
    """200 requests a second from the service's own program, while something happens; how many failed, of how many."""
    load = ("import concurrent.futures, http.client, sys, time\n"
            "def one(at):\n    time.sleep(max(0, at - time.monotonic()))\n    try:\n"
            "        wire = http.client.HTTPConnection('shop.mesh', 8080, timeout=10)\n        wire.request('GET', '/')\n"
            "        answer = wire.getresponse()\n        answer.read()\n        return answer.status\n    except Exception as error:\n        return repr(error)\n"
            f"start = time.monotonic()\nwith concurrent.futures.ThreadPoolExecutor(100) as pool:\n"
            f"    all = list(pool.map(one, [start + n / 200 for n in range({int(seconds * 200)})]))\n"
            "import collections, json\nprint(json.dumps(collections.Counter(map(str, all))))\n")
    said = []
    thread = threading.Thread(target=lambda: said.append(mesh.web.call(sys.executable, "-c", load)))
    thread.start()
    time.sleep(seconds / 3)
    meanwhile()
    thread.join()
    return json.loads(said[0])


@case
def a_sidecar_that_is_asked_to_end_loses_no_request(mesh):
    told = under_load(mesh, 3, lambda: mesh.sidecars["shop-1"].stop())
    mesh.sidecar(mesh.shop1)
    assert set(told) == {"200"}, told


@case
def a_sidecar_that_is_killed_is_left(mesh):
    def kill():
        mesh.sidecars["shop-1"].signal(signal.SIGKILL)
        mesh.sidecars["shop-1"].child.wait()

    told = under_load(mesh, 3, kill)
    # Without its sidecar nothing comes to the app: the rules lead to nobody.
    assert mesh.web.call("curl", "-sS", "--fail", "--max-time", "3", f"http://{mesh.shop1.v4}:8080/", ok=False) != 0
    mesh.sidecar(mesh.shop1)
    one = wait_for(lambda: answer(mesh.web, f"http://{mesh.shop1.v4}:8080/"), "the sidecar is back")
    failed = sum(many for status, many in told.items() if status != "200")
    assert one["name"] == "shop-1" and failed <= 3, told


@case
def an_app_may_start_before_its_sidecar_and_again(mesh):
    mesh.sidecars["web"].stop()
    assert mesh.web.call("curl", "-sS", "http://shop.mesh:8080/", ok=False) == 7
    waits = mesh.web.start("waits", ["curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1",
                                     f"http://shop.mesh:8080/{SECRET}"])
    mesh.sidecar(mesh.web)
    assert waits.child.wait(30) == 0 and "shop-" in waits.output(), waits.output()
    app = next(one for one in mesh.lab.running if one.name == "shop-0-app")
    app.stop()
    code = mesh.web.call("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{mesh.shop0.v4}:8080/")
    assert code == "503", code
    mesh.app(mesh.shop0, "127.0.0.1")
    assert answer(mesh.web, f"http://{mesh.shop0.v4}:8080/")["name"] == "shop-0"


@case
def link_local_addresses_lead_to_their_ports(mesh):
    mesh.sidecars["six"].stop()
    mesh.apply(mesh.six, "web", {"inbound": {"app": "[::1]:8080", "mtls": "off"}})
    mesh.sidecar(mesh.six)
    mesh.six.start("other", [sys.executable, SERVERS, "app", "other", 9090, "::"], ready=lambda: mesh.six.listens(9090, "::1"))
    settled = lambda: mesh.six.run("ip", "-6", "addr", "show", "dev", "eth0", "scope", "link", "-tentative").split()
    words = wait_for(settled, "it has a link-local address")
    there = next(word for word in words if word.startswith("fe80")).split("/")[0]
    # A port that the file lists, and one that it does not.
    for port, name in ((8080, "six"), (9090, "other")):
        one = answer(mesh.out, f"http://[{there}%25eth0]:{port}/", "-g")
        assert one["name"] == name, (port, one)


@case
def nobody_on_the_way_reads_any_of_it(mesh):
    packets = mesh.seen_on_the_way.read_bytes()
    assert len(packets) > 100_000, len(packets)
    assert SECRET.encode() not in packets, "plaintext on the wire"
    # The watcher does see what is sent in the open.
    marker = "in-the-open-and-to-be-seen"
    answer(mesh.web, f"http://out.example/{marker}")
    wait_for(lambda: marker.encode() in mesh.seen_on_the_way.read_bytes(), "the watcher sees plaintext")


def options():
    parser = argparse.ArgumentParser(prog="tests/capture/mesh/run", description=__doc__)
    parser.add_argument("--binary", type=pathlib.Path, help="the proxy (default: target/release, then target/debug)")
    parser.add_argument("--only", action="append", choices=[one.__name__ for one in CASES], help="this case alone (again for more)")
    parser.add_argument("--keep", action="store_true", help="keep the folder if a case failed")
    chosen = parser.parse_args()
    built = [ROOT / "target" / kind / "outrigger" for kind in ("release", "debug")]
    places = [chosen.binary] if chosen.binary else built
    chosen.binary = next((place.resolve() for place in places if place.is_file()), None)
    if not chosen.binary:
        parser.error(f"no proxy at {', '.join(map(str, places))}: build it (cargo build) or name it by --binary")
    return chosen


def main():
    chosen = options()
    if why := hosts.enter():
        print(f"SKIPPED: {why}")
        return 1 if os.environ.get("CI") == "true" else 0
    lab, failed = Lab("capture", chosen.binary, False), []
    try:
        mesh = Mesh(lab)
        for one in CASES:
            if chosen.only and one.__name__ not in chosen.only:
                continue
            begin = time.monotonic()
            try:
                one(mesh)
                print(f"ok      {one.__name__} ({time.monotonic() - begin:.1f} s)")
            except Exception:
                failed.append(one.__name__)
                print(f"FAILED  {one.__name__}\n{traceback.format_exc()}")
        if failed:
            print("\n".join(lab.logs()))
            if chosen.keep:
                print(f"kept: {lab.folder}")
    finally:
        lab.stop(keep=bool(failed) and chosen.keep)
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

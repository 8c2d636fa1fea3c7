"""Identities from a Workload API: a real gRPC server, real sidecars, renewals, restarts, no entry, bad ones, federation."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

from cases import Area
from lab import HERE, LOOPBACK, Sidecar, find, wait_for

area = Area("workload-api")
TAKEN = 'outrigger_workload_api_updates_total{result="taken"}'
REFUSED = 'outrigger_workload_api_updates_total{result="refused"}'


class Authority:
    """An `outrigger ca` for one trust domain; each certificate it issues has a folder of its own."""

    def __init__(self, name, domain):
        self.folder, self.domain, self.count = area.lab.path(name), domain, 0
        self.run("init", "--dir", self.folder, "--trust-domain", domain)

    @staticmethod
    def run(*arguments):
        subprocess.run([area.lab.binary, "ca", *map(str, arguments)], check=True, capture_output=True, timeout=30)

    @property
    def roots(self):
        return str(self.folder / "root.pem")

    def issue(self, service):
        """A new certificate for the service, as the agent is to give it."""
        self.count += 1
        out = pathlib.Path(f"{self.folder}-{service}-{self.count}")
        self.run("issue", "--service", service, "--ca", self.folder, "--out", out)
        return {"id": f"spiffe://{self.domain}/{service}", "cert": str(out / "cert.pem"), "key": str(out / "key.pem"),
                "roots": self.roots}


class Agent:
    """A Workload API for one workload. It is `begin`ned, `kill`ed and told what to give by the case."""

    def __init__(self, name):
        # A short path: a Unix socket's has at most 107 bytes.
        self.name, self.socket, self.file = name, area.lab.path(f"{name}.sock"), area.lab.path(f"{name}.json")
        self.process = None
        self.give({})

    def begin(self):
        argv = [sys.executable, HERE / "servers" / "workload_api.py", self.socket, self.file]
        self.process = area.lab.start(f"{self.name}-agent", argv, ready=self.socket.exists)
        return self

    def kill(self):
        """As an agent that crashes: its socket stays and nobody listens there."""
        self.process.signal(signal.SIGKILL)
        self.process.child.wait()

    def give(self, what):
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(what))
        new.rename(self.file)

    def svids(self, *svids, **more):
        self.give({"svids": svids, **more})

    def refuse(self, code="PERMISSION_DENIED", words="no identity issued"):
        self.give({"refuse": [code, words]})


def sidecar(name, config, ready=True):
    """One whose admin answers; `ready` waits until it takes traffic."""
    one = Sidecar(area.lab, name, config)
    area.lab.running.append(one)
    wait_for(one.ready if ready else lambda: one.get("/live"), f"sidecar {name} is up")
    return one


def server(name, agent, ready=True, identity=None, **inbound):
    one_at = area.lab.port()
    one = sidecar(name, {
        "identity": {"workload-api": f"unix:{agent.socket}", **(identity or {})},
        "outbound": {"listen": f"{LOOPBACK}:{area.lab.port()}"},
        "inbound": {"listen": f"{LOOPBACK}:{one_at}", "app": f"{LOOPBACK}:{area.app}", **inbound}}, ready)
    one.at = one_at
    return one


def client(name, agent, to, wanted="spiffe://shop/server", ready=True):
    one_at = area.lab.port()
    one = sidecar(name, {
        "identity": {"workload-api": f"unix:{agent.socket}"},
        "outbound": {"listen": f"{LOOPBACK}:{one_at}"},
        "peers": {"server": {"static": [f"{LOOPBACK}:{to.at}"], "mtls": {"id": wanted}}}}, ready)
    one.out = one_at
    return one


def ask(caller, *options):
    """The status of one request through the caller's sidecar, and the reason where it is refused."""
    done = subprocess.run([find("curl"), "-s", "-i", "--max-time", "10", *options, "-H", "Host: server",
                           f"http://{LOOPBACK}:{caller.out}/"], capture_output=True, text=True, errors="replace")
    reason = re.search(r"reason=(\w+)", done.stdout)
    return int(done.stdout.split(" ", 2)[1]), reason and reason.group(1)


def serial(port):
    """The serial number of the certificate that is shown to a new connection."""
    shown = subprocess.run([find("openssl"), "s_client", "-connect", f"{LOOPBACK}:{port}"], input="", text=True,
                           capture_output=True, timeout=10).stdout
    return number(["-noout", "-serial"], shown) if "BEGIN CERTIFICATE" in shown else None


def number(options, text=None):
    done = subprocess.run([find("openssl"), "x509", *options], input=text, text=True, capture_output=True, timeout=10)
    return done.stdout.strip()


def of(svid):
    return number(["-in", svid["cert"], "-noout", "-serial"])


def metric(one, name):
    page = one.get("/metrics")[1]
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.M)
    return float(found.group(1)) if found else 0.0


@area.setup
def world(lab):
    area.lab = lab
    area.app = lab.serve("both.mjs")
    if not lab.direct:
        area.shop = Authority("shop", "shop")
        area.agents = {name: Agent(name).begin() for name in ("server", "client")}
        area.leaf = area.shop.issue("server")
        area.agents["server"].svids(area.leaf)
        area.agents["client"].svids(area.shop.issue("client"))
        area.server = server("server", area.agents["server"])
        area.client = client("client", area.agents["client"], area.server)
    # The cases have sidecars of their own; the mesh is the least that there is.
    return {"any": lab.mesh("any", area.app)}


@area.case("any", only="through")
def identity_arrives_in_its_own_time(at):
    late = Agent("late")
    one = server("late-in", late, ready=False)
    caller = client("late-out", late, area.server, ready=False)
    for sidecar in (one, caller):
        wait_for(lambda: "cannot be reached: No such file or directory" in sidecar.get("/ready")[1], "no socket is told")
        assert sidecar.get("/ready")[0] == 503
    assert ask(caller) == (503, "no_identity")
    late.refuse()
    late.begin()
    told = f"the agent knows no identity for this workload (no identity issued): register an entry whose selectors fit it (uid {os.getuid()}"
    for sidecar in (one, caller):
        wait_for(lambda: told in sidecar.get("/ready")[1], "no entry is told")
    assert ask(caller) == (503, "no_identity")
    late.svids(area.shop.issue("late"))
    for sidecar in (one, caller):
        wait_for(sidecar.ready, "an identity has come")
    assert ask(caller) == (200, None)
    wait_for(lambda: '"client_id":"spiffe://shop/late"' in area.server.output(), "the server knows who called")
    return "came"


@area.case("any", only="through")
def renewals_reach_new_handshakes_and_cost_no_request(at):
    agent, shown = area.agents["server"], []
    assert ask(area.client) == (200, None)
    for _ in range(5):
        area.leaf = area.shop.issue("server")
        agent.svids(area.leaf)
        wait_for(lambda: serial(area.server.at) == of(area.leaf), "the new certificate is shown", within=2)
        shown.append(serial(area.server.at))
        assert [ask(area.client) for _ in range(10)] == [(200, None)] * 10
    assert len(set(shown)) == 5
    # The roots follow in the same way: both for a while, then the new one alone.
    new, both = Authority("shop-new", "shop"), area.lab.path("both.pem")
    both.write_text(pathlib.Path(area.shop.roots).read_text() + pathlib.Path(new.roots).read_text())
    for authority, roots in ((area.shop, both), (new, both), (new, new.roots)):
        for one in (area.server, area.client):
            before = metric(one, TAKEN)
            area.agents[one.name].svids(authority.issue(one.name) | {"roots": str(roots)})
            wait_for(lambda: metric(one, TAKEN) > before, "it is taken")
            assert ask(area.client) == (200, None)
    area.shop = new
    area.leaf = new.issue("server")
    area.agents["server"].svids(area.leaf)
    wait_for(lambda: serial(area.server.at) == of(area.leaf), "the last one is shown")
    return "renewed"


@area.case("any", only="through")
def an_agent_that_restarts_is_found_again(at):
    agent, before = area.agents["server"], serial(area.server.at)
    failures = metric(area.server, "outrigger_workload_api_failures_total")
    agent.kill()
    wait_for(lambda: metric(area.server, "outrigger_workload_api_failures_total") >= failures + 3, "it is asked again")
    assert (ask(area.client), serial(area.server.at)) == ((200, None), before)
    assert area.server.get("/ready")[0] == 200
    assert "the last good identity stays in force" in area.server.output()
    agent.socket.unlink()
    area.leaf = area.shop.issue("server")
    agent.svids(area.leaf)
    agent.begin()
    wait_for(lambda: serial(area.server.at) == of(area.leaf), "the new certificate is shown", within=12)
    # An entry that is taken away leaves what was given until it expires.
    agent.refuse()
    wait_for(lambda: "the agent knows no identity for this workload" in area.server.output(), "it is told")
    assert (ask(area.client), serial(area.server.at)) == ((200, None), of(area.leaf))
    area.leaf = area.shop.issue("server")
    agent.svids(area.leaf)
    wait_for(lambda: serial(area.server.at) == of(area.leaf), "the entry is back", within=12)
    return "found"


@area.case("any", only="through")
def what_does_not_fit_together_is_refused(at):
    agent, good, other = area.agents["server"], area.leaf, Authority("other", "shop")
    empty, no_id = area.lab.path("empty.pem"), area.lab.path("no-id.pem")
    empty.write_text("")
    subprocess.run([find("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", area.lab.path("no-id.key"), "-out", no_id, "-subj", "/CN=server", "-addext",
                    "basicConstraints=critical,CA:FALSE", "-addext", "keyUsage=digitalSignature"], check=True, capture_output=True)
    for bad in (area.shop.issue("server") | {"key": area.shop.issue("server")["key"]},
                area.shop.issue("server") | {"roots": other.roots},
                area.shop.issue("server") | {"roots": str(empty)},
                area.shop.issue("server") | {"cert": str(no_id)}):
        refused = metric(area.server, REFUSED)
        agent.svids(bad)
        wait_for(lambda: metric(area.server, REFUSED) > refused, "it is refused")
        assert (ask(area.client), serial(area.server.at)) == ((200, None), of(good)), bad
    for told in ("not the private key of the Workload API at unix:", "an update that cannot be used"):
        assert told in area.server.output(), told
    assert "PRIVATE" not in area.server.output() and "PRIVATE" not in area.server.get("/state")[1]
    area.leaf = area.shop.issue("server")
    agent.svids(area.leaf)
    wait_for(lambda: serial(area.server.at) == of(area.leaf), "a good one is taken on the same stream")
    return "refused"


@area.case("any", only="through")
def partners_are_known_by_federated_bundles(at):
    partner, mine, theirs = Authority("partner", "partner"), Agent("mine").begin(), Agent("theirs").begin()
    mine.svids(area.shop.issue("server"))
    theirs.svids(partner.issue("buyer"), federated={"shop": area.shop.roots})
    one = server("fed-in", mine, allow={"from": "spiffe://partner/buyer"})
    caller = client("fed-out", theirs, one)
    assert ask(caller) == (502, "tls_refused_by_peer")
    wait_for(lambda: '"reason":"client_untrusted"' in one.output(), "whose domain is unknown")
    mine.svids(area.shop.issue("server"), federated={"partner": partner.roots})
    wait_for(lambda: ask(caller) == (200, None), "the partner is believed")
    wait_for(lambda: '"client_id":"spiffe://partner/buyer"' in one.output(), "the log knows who called")
    # The other way: who is not federated with us is not called.
    alone = Agent("alone").begin()
    alone.svids(partner.issue("buyer"))
    assert ask(client("alone-out", alone, one)) == (502, "peer_untrusted")
    return "federated"


@area.case("any", only="through")
def one_of_several_is_chosen_by_id(at):
    agent = Agent("several")
    agent.svids(area.shop.issue("first"), area.shop.issue("second"))
    agent.begin()
    first, second = server("first-in", agent), server("second-in", agent, identity={"id": "spiffe://shop/second"})
    shown = [subprocess.run([area.lab.binary, "ca", "inspect", f"{LOOPBACK}:{one.at}"], capture_output=True, text=True,
                            timeout=10).stdout for one in (first, second)]
    assert "spiffe://shop/first" in shown[0] and "spiffe://shop/second" in shown[1], shown
    third = server("third-in", agent, ready=False, identity={"id": "spiffe://shop/third"})
    wait_for(lambda: "it does not give spiffe://shop/third" in third.get("/ready")[1], "it is told")
    # A reload may choose another, and another socket.
    text = third.file.read_text()
    third.file.write_text(text.replace("shop/third", "shop/second"))
    wait_for(third.ready, "the reload chose one that is there")
    other = Agent("elsewhere")
    other.svids(area.shop.issue("moved"))
    other.begin()
    config = json.loads(text)
    config["identity"] = {"workload-api": f"unix://{other.socket}"}
    third.file.write_text(json.dumps(config))
    wait_for(lambda: "spiffe://shop/moved" in subprocess.run(
        [area.lab.binary, "ca", "inspect", f"{LOOPBACK}:{third.at}"], capture_output=True, text=True, timeout=10).stdout,
        "the other agent's identity is shown")
    return "chosen"


@area.case("any", only="through")
def the_standards_variable_is_honoured(at):
    agent = Agent("variable")
    agent.svids(area.shop.issue("variable"))
    agent.begin()
    os.environ["SPIFFE_ENDPOINT_SOCKET"] = f"unix://{agent.socket}"
    try:
        one_at = area.lab.port()
        sidecar("variable-in", {
            "identity": {"workload-api": "on"}, "outbound": {"listen": f"{LOOPBACK}:{area.lab.port()}"},
            "inbound": {"listen": f"{LOOPBACK}:{one_at}", "app": f"{LOOPBACK}:{area.app}"}})
    finally:
        del os.environ["SPIFFE_ENDPOINT_SOCKET"]
    return "honoured"

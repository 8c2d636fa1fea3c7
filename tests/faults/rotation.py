"""Identities that change under load: leaf and key every 200 ms, roots every few seconds with both in force for two."""

import collections
import contextlib
import hashlib
import json
import pathlib
import socket
import ssl
import subprocess
import threading
import time

import endpoints
import ledger
import network
from lab import LOOPBACK, Lab, wait_for

HERE = pathlib.Path(__file__).resolve().parent
NAME = "shop"
# A new leaf so often; new roots so often, and how long the old ones stay beside them.
LEAF, ROOTS, OVERLAP = 0.2, 5.0, 2.0
# What a sidecar shows may have been replaced no longer ago than this.
STALE = 1.0
# What a caller says that does no more than stay: a request, and the preface with empty SETTINGS.
HELD = {"http/1.1": b"GET /held HTTP/1.1\r\nhost: shop\r\n\r\n", "h2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)}
# Until this part of the overlap is over, the old authority issues: every service has to trust the new one first.
OLD_ISSUES = 0.4


class Rotator:
    """Authorities and leaves of two services, replaced as README tells it."""

    def __init__(self, lab):
        self.lab, self.count = lab, 0
        # (when it was replaced, its SHA-256) of each service, oldest first.
        self.leaves = {"server": [], "client": []}
        self.authority = self.new_authority()
        self.issue()

    def begin(self, *arguments):
        argv = [self.lab.binary, "ca", *map(str, arguments)]
        return subprocess.Popen(argv, cwd=self.lab.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments):
        self.end(self.begin(*arguments))

    def end(self, process):
        _, said = process.communicate(timeout=20)
        if process.returncode:
            raise RuntimeError(f"{process.args}: {said}")

    def new_authority(self):
        self.count += 1
        folder = self.lab.path(f"ca-{self.count}")
        self.run("init", "--trust-domain", "shop", "--dir", folder)
        return folder

    def files(self, service):
        return self.lab.path("tls") / service

    def identity(self, service):
        at = self.files(service)
        return {"certificate": str(at / "cert.pem"), "key": str(at / "key.pem"), "roots": str(at / "roots.pem")}

    def issue(self):
        # Both at once, so that neither is always the first to go by new roots.
        issuing = [self.begin("issue", "--service", service, "--ca", self.authority) for service in self.leaves]
        for process in issuing:
            self.end(process)
        for service, leaves in self.leaves.items():
            pem = (self.files(service) / "cert.pem").read_text().split("-----END CERTIFICATE-----")[0]
            der = ssl.PEM_cert_to_DER_cert(pem + "-----END CERTIFICATE-----\n")
            leaves.append((time.monotonic(), hashlib.sha256(der).hexdigest()))

    def pace(self):
        """How many leaves there were, and whether they came as often as they should."""
        # The first was there before the load.
        times = [at for at, _ in self.leaves["server"]][1:]
        pauses = [later - earlier for earlier, later in zip(times, times[1:])] or [0.0]
        return (f"{len(times) + 1} leaves, one every {1000 * sum(pauses) / len(pauses):.0f} ms "
                f"(the longest pause {1000 * max(pauses):.0f} ms),")

    def until(self, end, turns):
        """Issues every LEAF seconds, and changes the roots every ROOTS seconds, for as long as all is quiet after."""
        next_leaf = next_roots = time.monotonic()
        plan = collections.deque()
        while (now := time.monotonic()) < end:
            if not plan and now >= next_roots and now + OVERLAP < end:
                old, new = self.authority, self.new_authority()
                root_old, root_new = ((at / "root.pem").read_text() for at in (old, new))
                plan.extend([(now, old, root_old + root_new), (now + OVERLAP * OLD_ISSUES, new, root_new + root_old),
                             (now + OVERLAP, new, root_new)])
                next_roots = now + ROOTS
            if plan and now >= plan[0][0]:
                _, self.authority, roots = plan.popleft()
                # The looks read it at any time.
                (self.authority / "root.new").write_text(roots)
                (self.authority / "root.new").replace(self.authority / "root.pem")
                turns.append(not plan)
            if now >= next_leaf:
                next_leaf = max(next_leaf + LEAF, now - LEAF)
                self.issue()
            time.sleep(max(0.0, min(0.02, next_leaf - time.monotonic())))

    def age(self, service, der, begin):
        """For how long what was shown at `begin` or later had been replaced by then; None if nobody issued it."""
        digest, leaves = hashlib.sha256(der).hexdigest(), self.leaves[service]
        at = next((at for at in reversed(range(len(leaves))) if leaves[at][1] == digest), None)
        if at is None:
            return None
        return max(0.0, begin - leaves[at + 1][0]) if at + 1 < len(leaves) else 0.0


class Looks:
    """Handshakes with both sidecars, and what they show: as their caller, and as the peer that they call."""

    def __init__(self, lab, rotator):
        self.lab, self.rotator, self.over = lab, rotator, threading.Event()
        self.wrong, self.seen, self.oldest, self.let_go = [], collections.Counter(), 0.0, 0
        self.listener = socket.create_server((LOOPBACK, 0))
        self.peer = self.listener.getsockname()[1]

    def context(self, kind, service):
        context = ssl.SSLContext(kind)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        files = self.rotator.files(service)
        while True:
            # Between two renames key and certificate do not fit.
            with contextlib.suppress(ssl.SSLError, OSError):
                context.load_cert_chain(files / "cert.pem", files / "key.pem")
                return context

    def note(self, service, der, begin):
        # Its file is there a moment before it is noted here.
        wait_for(lambda: self.rotator.age(service, der, begin) is not None, f"{service}'s leaf is known", within=5)
        age = self.rotator.age(service, der, begin)
        self.seen[service] += 1
        self.oldest = max(self.oldest, age)
        if age > STALE:
            self.wrong.append(f"{service} showed a certificate that had been replaced {age:.2f} s before")

    def call(self, door):
        """Calls the server's door as a client would."""
        while not self.over.is_set():
            begin = time.monotonic()
            context = self.context(ssl.PROTOCOL_TLS_CLIENT, "client")
            with socket.create_connection((LOOPBACK, door), timeout=5) as raw, context.wrap_socket(raw) as tls:
                self.note("server", tls.getpeercert(binary_form=True), begin)
            self.over.wait(0.05)

    def be_called(self, port):
        """Has the client's sidecar call this, and looks at what it shows."""
        while not self.over.is_set():
            begin = time.monotonic()
            with socket.create_connection((LOOPBACK, port), timeout=5) as caller:
                caller.sendall(b"*1\r\n")
                raw, _ = self.listener.accept()
                context = self.context(ssl.PROTOCOL_TLS_SERVER, "server")
                context.verify_mode = ssl.CERT_OPTIONAL
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                for authority in self.lab.folder.glob("ca-*/root.pem"):
                    # One that is just being made has signed nothing yet.
                    with contextlib.suppress(ssl.SSLError):
                        context.load_verify_locations(authority)
                raw.settimeout(5)
                # A leaf of ours that was read while roots change may be refused: then there is nothing to see.
                with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as tls:
                    self.note("client", tls.getpeercert(binary_form=True), begin)
            self.over.wait(0.05)

    def hold(self, door, says):
        """Stays connected to the server's door by the leaf that it came with, for as long as that is believed."""
        while not self.over.is_set():
            context = self.context(ssl.PROTOCOL_TLS_CLIENT, "client")
            context.set_alpn_protocols([says])
            with socket.create_connection((LOOPBACK, door), timeout=5) as raw, context.wrap_socket(raw) as tls:
                tls.sendall(HELD[says])
                tls.settimeout(0.2)
                while not self.over.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not tls.recv(65536):
                            self.let_go += 1
                            break

    def guarded(self, what, *arguments):
        try:
            what(*arguments)
        except Exception as error:  # pylint: disable=broad-except
            self.wrong.append(f"{what.__name__}: {error!r}")


def sidecars(lab, rotator, speaks, app, looks):
    """The server's sidecar and the client's, with the ports that lead to the load's path and to the looks."""
    inbound, outbound, tunnel = lab.port(), lab.port(), lab.port()
    server = lab.sidecar("server", {
        "identity": rotator.identity("server"), "outbound": {"listen": f"{LOOPBACK}:{lab.port()}"},
        "inbound": {"listen": f"{LOOPBACK}:{inbound}", "app": app.address, "protocol": speaks,
                    "allow": {"from": "spiffe://shop/client"}}})
    client = lab.sidecar("client", {
        "identity": rotator.identity("client"), "outbound": {"listen": f"{LOOPBACK}:{outbound}"},
        "peers": {NAME: {"static": [f"{LOOPBACK}:{inbound}"], "protocol": speaks,
                         "mtls": {"id": "spiffe://shop/server"}},
                  "looks": {"static": [f"{LOOPBACK}:{looks.peer}"], "protocol": "tcp",
                            "listen": f"{LOOPBACK}:{tunnel}", "mtls": {"id": "spiffe://shop/server"}}}})
    return server, client, inbound, outbound, tunnel


def metric(sidecar, name):
    """The sum of a counter over its labels, by the last of them."""
    found = collections.Counter()
    for line in sidecar.get("/metrics")[1].splitlines():
        if line.startswith(name + "{"):
            labels, value = line.rsplit(" ", 1)
            found[labels.rsplit('="', 1)[1].rstrip('"}')] += int(float(value))
    return found


def judge(app, answers, pace):
    executed = collections.Counter(line.split()[-1] for line in app.ledger.read_text().splitlines()
                                   if line.startswith("E "))
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    wrong = [f"{len(records)} requests were over and {pace['sent']} were sent"] if len(records) != pace["sent"] else []
    if pace["behind_ms"] > ledger.BEHIND_MS:
        wrong.append(f"the client was up to {pace['behind_ms']} ms late: this machine cannot make the load")
    for record in records:
        if record.get("status") != 200 or record.get("body") != record["id"] or record["answers"] != 1:
            wrong.append(f"{record['id']} at {record['at']} ms failed: {ledger.brief(record)}")
        elif record["method"] == "POST" and executed[record["id"]] != 1:
            wrong.append(f"{record['id']} was executed {executed[record['id']]} times")
    slowest = max((record["ms"] for record in records), default=0)
    return f"{len(records)} requests, {len(wrong)} failed, slowest {slowest} ms", wrong


def run(chosen, speaks):
    """Load and rotations for some seconds; what was wrong, line by line."""
    lab = Lab(f"faults-rotation-{speaks}", chosen.binary, False)
    wrong = ["it broke off"]
    try:
        rotator = Rotator(lab)
        looks = Looks(lab, rotator)
        app = endpoints.Endpoint(lab, network.Loopback(lab, 1), 0, speaks, False)
        wait_for(app.is_up, "the app is up")
        server, client, inbound, outbound, tunnel = sidecars(lab, rotator, speaks, app, looks)
        answers, turns = lab.path("answers.jsonl"), []
        argv = ["node", HERE / "load.mjs", LOOPBACK, outbound, NAME, chosen.rate, chosen.seconds, answers]
        end = time.monotonic() + chosen.seconds
        load = lab.start("load", argv)
        threads = [threading.Thread(target=looks.guarded, args=arguments, daemon=True)
                   for arguments in ((looks.call, inbound), (looks.be_called, tunnel),
                                     (looks.hold, inbound, {"http1": "http/1.1", "http2": "h2"}[speaks]))]
        for thread in threads:
            thread.start()
        rotator.until(end, turns)
        looks.over.set()
        for thread in threads:
            thread.join(15)
        wait_for(lambda: not load.alive(), "all requests are over", within=20)
        told, wrong = judge(app, answers, json.loads(load.output().splitlines()[-1]))
        ended = {one.name: metric(one, "outrigger_distrusted_connections_total") for one in (server, client)}
        results = {one.name: metric(one, "outrigger_identity_rotations_total") for one in (server, client)}
        wrong += looks.wrong
        wrong += [f"{name} refused {many['refused']} replacements" for name, many in results.items() if many["refused"]]
        wrong += [f"{name} looked at {looks.seen[name]} times only" for name in rotator.leaves if looks.seen[name] < 20]
        if not sum(turns):
            wrong.append("no roots were replaced: give it more --seconds")
        elif not (any(ended.values()) and looks.let_go):
            wrong.append("roots went, and no connection was closed for it")
        if not all(many["applied"] > len(rotator.leaves["server"]) / 3 for many in results.values()):
            wrong.append(f"too few rotations were seen: {results}")
        applied = ", ".join(f"{many['applied']} by the {name}" for name, many in results.items())
        closed = ", ".join(f"{sum(many.values())} by the {name}" for name, many in ended.items())
        print(f"    {told}; {rotator.pace()} and {sum(turns)} roots replaced; applied {applied}; "
              f"{sum(looks.seen.values())} handshakes looked at, the oldest leaf replaced {looks.oldest:.2f} s before; "
              f"connections closed for their roots: {closed}, {looks.let_go} of them those of a caller that stays")
        if wrong and chosen.keep:
            for one in (server, client):
                lab.path(f"{one.name}-metrics.txt").write_text(one.get("/metrics")[1])
    finally:
        if wrong and chosen.keep:
            print(f"    kept: {lab.folder}")
        lab.stop(keep=bool(wrong) and chosen.keep)
    return wrong

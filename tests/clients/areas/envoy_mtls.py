"""Envoy with mutual TLS on either side of ours: it calls our inbound door, and our outbound door calls it."""

import json
import re
import time

import envoy
from areas.curl import curl
from cases import Area
from lab import LOOPBACK, Place, wait_for

area = Area("envoy")

OURS, THEIRS, SOMEBODY = "spiffe://shop/ours", "spiffe://shop/theirs", "spiffe://shop/somebody"


class Way:
    """Straight to the app, and through one sidecar of each kind."""

    def __init__(self, name, app, port):
        self.direct, self.through = Place(True, name, app, app, self), Place(False, name, port, port, self)


@area.setup
def world(lab):
    app = lab.serve("both.mjs")
    names = ["calls-1", "calls-2", "calls-hybrid", "called-1", "called-2", "called-hybrid"]
    if lab.direct:
        return {name: Way(name, app, 0) for name in names}
    issue, foreign = envoy.authority(lab, "ca"), envoy.authority(lab, "foreign")
    ours, theirs = issue("ours"), issue("theirs")
    # The other authority's own trust ours, so that it is only they who are not believed.
    stranger = foreign("theirs")
    (stranger / "roots.pem").write_text((ours / "roots.pem").read_text())
    begun = time.time()
    expired = issue("expired", "--ttl", "1s")
    area.hash = {name: fingerprint(folder) for name, folder in (("ours", ours), ("theirs", theirs))}

    door = lab.port()
    area.callee = lab.sidecar("ours-in", {
        "identity": envoy.identity(ours), "outbound": {"listen": f"{LOOPBACK}:{lab.port()}"},
        "inbound": {"listen": f"{LOOPBACK}:{door}", "app": f"{LOOPBACK}:{app}", "allow": {"from": THEIRS}}})
    meshes = {}

    def calls(name, folder, sans, version, group=None):
        port = lab.port()
        envoy.caller(lab, f"envoy-{name}", port, door, folder, sans, version, group)
        meshes[name] = Way(name, app, port)
    for version in (1, 2):
        calls(f"calls-{version}", theirs, [OURS], version)
    calls("calls-hybrid", theirs, [OURS], 1, "X25519MLKEM768")
    calls("calls-uninvited", issue("uninvited"), [OURS], 1)
    calls("calls-foreign", stranger, [OURS], 1)
    calls("calls-expired", expired, [OURS], 1)
    calls("calls-somebody", theirs, [SOMEBODY], 1)

    out, peers = lab.port(), {}

    def called(name, folder, sans, version, group=None, who=THEIRS):
        port = lab.port()
        envoy.callee(lab, f"envoy-{name}", port, app, folder, sans, version, group)
        peers[name] = {"static": [f"{LOOPBACK}:{port}"], "mtls": {"id": who}}
        meshes[name] = Way(name, app, out)
    for version in (1, 2):
        called(f"called-{version}", theirs, [OURS], version)
    called("called-hybrid", theirs, [OURS], 1, "X25519MLKEM768")
    called("called-somebody", theirs, [OURS], 1, who=SOMEBODY)
    called("called-foreign", stranger, [OURS], 1)
    called("called-expired", expired, [OURS], 1, who="spiffe://shop/*")
    called("called-choosy", theirs, [SOMEBODY], 1)
    area.caller = lab.sidecar("ours-out", {
        "identity": envoy.identity(ours), "outbound": {"listen": f"{LOOPBACK}:{out}"}, "peers": peers})
    wait_for(lambda: time.time() > begun + 2, "the certificate has expired")
    return meshes


def fingerprint(folder):
    """SHA-256 of a leaf, as both products write it."""
    import hashlib
    import ssl
    pem = re.search(r"-----BEGIN.*?END CERTIFICATE-----\n", (folder / "cert.pem").read_text(), re.DOTALL).group()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def asked(at, flag, told):
    """What the app sees of a request with a body; through, it must also have been told who called."""
    forged = ("-H", "X-Forwarded-Client-Cert: By=a;URI=spiffe://shop/admin")
    seen = json.loads(curl(at, "/echo?q=%2F", flag, "-d", "x" * 90000, "-H", "Expect:", *(() if at.direct else forged))[1])
    assert seen.pop("client_cert", None) == (None if at.direct else told), seen
    return seen


def as_of(who, by):
    return f"By={by[0]};Hash={area.hash[who[1]]};URI={who[0]}"


def calls(at, flag):
    return asked(at, flag, None if at.direct else as_of((THEIRS, "theirs"), (OURS,)))


def called(at, flag):
    return asked(at, flag, None if at.direct else as_of((OURS, "ours"), (THEIRS,)))


@area.case("calls-1")
def it_calls_us_over_http_1(at):
    return calls(at, "--http1.1")


@area.case("calls-2")
def it_calls_us_over_http_2(at):
    seen = calls(at, "--http2-prior-knowledge")
    assert seen["version"] == "2.0", seen
    return seen


@area.case("called-1")
def we_call_it_over_http_1(at):
    return called(at, "--http1.1")


@area.case("called-2")
def we_call_it_over_http_2(at):
    seen = called(at, "--http2-prior-knowledge")
    assert seen["version"] == "2.0", seen
    return seen


@area.case("calls-hybrid")
def it_calls_us_by_x25519mlkem768_alone(at):
    return calls(at, "--http1.1")


@area.case("called-hybrid")
def we_call_it_by_x25519mlkem768_alone(at):
    return called(at, "--http1.1")


def trailers(at):
    _, out = curl(at, "/trailers", "--http2-prior-knowledge", "-i")
    found = [line for line in out.split("\r\n") if line.startswith(("HTTP/2", "x-sum", "x-second", "body"))]
    assert "x-sum: 42" in found, out
    return found


area.case("calls-2", name="trailers-when-it-calls-us")(trailers)
area.case("called-2", name="trailers-when-we-call-it")(trailers)


def big(at):
    return curl(at, "/download?bytes=20000000", "-o", "/dev/null", "-w", "%{http_code} %{size_download}")


for mesh in ("calls-1", "called-1"):
    area.case(mesh, name=f"twenty-megabytes-{mesh}")(big)


def lines(sidecar, reason):
    """The access lines with a reason."""
    found = [json.loads(line) for line in sidecar.output().splitlines() if line.startswith("{") and '"reason"' in line]
    return [line for line in found if line.get("reason") == reason]


def counted(sidecar, reason):
    """How often the metric says so."""
    _, text = sidecar.get("/metrics")
    found = re.findall(rf'^outrigger_failures_total\{{[^}}]*reason="{reason}"[^}}]*\}} (\d+)', text, re.MULTILINE)
    return sum(map(int, found))


def status(at, *options):
    return curl(at, "/echo", "-o", "/dev/null", "-w", "%{http_code}", *options)[1]


def refused_call(name, reason, code, words):
    """Envoy calls and one of both sides refuses: the app is not asked, and our log and metric say why."""
    def case(at):
        before = counted(area.callee, reason)
        assert status(at) == code, status(at)
        line = wait_for(lambda: lines(area.callee, reason), f"a line with {reason}")[-1]
        assert line["side"] == ("policy" if reason == "denied" else "client") and words in json.dumps(line), line
        assert counted(area.callee, reason) > before
    area.case(name, only="through", name=f"{name}-{reason}")(case)


# Envoy's 503 stands for a connection that was refused; the 403 is our own answer, which it passes on.
refused_call("calls-uninvited", "denied", "403", "spiffe://shop/uninvited")
refused_call("calls-foreign", "client_untrusted", "503", "no root of its trust domain")
refused_call("calls-expired", "client_certificate_expired", "503", "expired at")
refused_call("calls-somebody", "tls_refused_by_client", "503", "it refuses our")


def refused_answer(name, reason, words):
    """We call Envoy and one of both sides refuses: the caller's answer says which, and so do log and metric."""
    def case(at):
        before = counted(area.caller, reason)
        out = curl(at, "/secret", "-i")[1]
        head = out.split("\r\n\r\n")[0].lower()
        assert head.startswith("http/1.1 502 ") and f"reason={reason}" in head and words in out, out
        line = wait_for(lambda: lines(area.caller, reason), f"a line with {reason}")[-1]
        assert line["side"] == "peer", line
        assert counted(area.caller, reason) > before
    area.case(name, only="through", name=f"{name}-{reason}")(case)


refused_answer("called-somebody", "peer_identity_mismatch", "it is `spiffe://shop/theirs`, but must be `spiffe://shop/somebody`")
refused_answer("called-foreign", "peer_untrusted", "no root of its trust domain")
refused_answer("called-expired", "peer_certificate_expired", "expired at")
refused_answer("called-choosy", "tls_refused_by_peer", "it refuses our")

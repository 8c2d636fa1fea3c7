"""Mutual TLS with openssl, curl and Python's ssl on the other side: who is let in, who is refused and with which alert."""

import contextlib
import hashlib
import json
import re
import socket
import ssl
import subprocess
import time

import envoy
from areas.ca import openssl
from areas.envoy_mtls import counted, lines
from cases import Area
from lab import LOOPBACK, Place, find, wait_for

area = Area("mtls")

OURS = "spiffe://shop/ours"


class Way:
    """The door itself is what is spoken with; there is nothing to compare it with."""

    def __init__(self, port):
        self.direct = self.through = Place(False, "ours.test", port, port, self)


@area.setup
def world(lab):
    if lab.direct:
        return {}
    area.lab = lab
    issue, foreign = envoy.authority(lab, "ca"), envoy.authority(lab, "foreign")
    begun = time.time()
    area.who = {"client": issue("client"), "expired": issue("expired", "--ttl", "1s"), "uninvited": issue("uninvited"),
                "foreign": foreign("client"), "revoked": issue("revoked"), "ours": issue("ours", "--dns", "ours.test")}
    for name, names in (("nameless", None), ("two-ids", "URI:spiffe://shop/client,URI:spiffe://shop/b"),
                        ("dns-only", "DNS:client"), ("no-spiffe", "URI:https://shop/client")):
        area.who[name] = made(lab, name, names)
    crl = revoke(lab, area.who["revoked"])
    app = lab.serve("both.mjs")

    def door(name, timeouts=None, **more):
        port = lab.port()
        sidecar = lab.sidecar(f"{name}-in", {
            "identity": envoy.identity(area.who["ours"], crls=[str(crl)], **more),
            "outbound": {"listen": f"{LOOPBACK}:{lab.port()}"},
            "inbound": {"listen": f"{LOOPBACK}:{port}", "app": f"{LOOPBACK}:{app}", "allow": {"from": "spiffe://shop/client"},
                        **(timeouts or {})}})
        return sidecar, Way(port)
    (area.door, strict), (area.old, old) = door("strict"), door("old", {"timeout": {"keep-alive": "2s"}}, tls12=True)
    wait_for(lambda: time.time() > begun + 2, "the certificate has expired")
    return {"door": strict, "old": old}


def made(lab, name, names):
    """A certificate under our root that `outrigger ca` would not make."""
    folder, root = lab.path(name), lab.path("ca")
    folder.mkdir()
    extensions = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
    (folder / "ext").write_text(extensions + (f"subjectAltName={names}\n" if names else ""))
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / "key.pem",
            "-out", folder / "req.pem", "-subj", "/CN=client")
    openssl("x509", "-req", "-in", folder / "req.pem", "-CA", root / "root.pem", "-CAkey", root / "root.key", "-days", "2",
            "-out", folder / "cert.pem", "-extfile", folder / "ext")
    (folder / "roots.pem").write_text((root / "root.pem").read_text())
    return folder


def revoke(lab, whose):
    """A CRL by our root that lists a certificate."""
    folder, root = lab.path("crl"), lab.path("ca")
    folder.mkdir()
    (folder / "index").touch()
    (folder / "number").write_text("01\n")
    file = folder / "ca.conf"
    file.write_text(f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/index\ncrlnumber={folder}/number\ndefault_md=sha256\n"
                    f"default_crl_days=2\ncertificate={root}/root.pem\nprivate_key={root}/root.key\ncrl_extensions=x\n"
                    "[x]\nauthorityKeyIdentifier=keyid\n")
    openssl("ca", "-config", file, "-revoke", whose / "cert.pem")
    openssl("ca", "-config", file, "-gencrl", "-out", folder / "crl.pem")
    return folder / "crl.pem"


def shown(who):
    """openssl's options to show a certificate and trust our root."""
    folder = area.who[who]
    return ["-cert", folder / "cert.pem", "-key", folder / "key.pem", "-CAfile", area.who["ours"] / "roots.pem"]


REQUEST = "GET /echo HTTP/1.1\r\nHost: ours.test\r\nConnection: close\r\n\r\n"


def s_client(at, *options):
    """What s_client says of a request to the door, and what comes back."""
    return openssl("s_client", "-connect", at.address, "-servername", "ours.test", "-ign_eof", *options, check=False, told=REQUEST)


@area.case("door", only="through")
def s_client_is_let_in_by_tls_1_3(at):
    out = s_client(at, *shown("client"), "-alpn", "http/1.1", "-verify_return_error")
    for said in ("New, TLSv1.3, Cipher is TLS_", "Verification: OK", "ALPN protocol: http/1.1", "HTTP/1.1 200 OK",
                 "Server Temp Key: X25519", f"By={OURS};Hash={fingerprint('client')};URI=spiffe://shop/client"):
        assert said in out, f"{said}: {out}"


@area.case("door", only="through")
def s_client_by_the_hybrid_group_where_openssl_knows_it(at):
    # From OpenSSL 3.5 on; an older one has to say that it does not know the group. Envoy's area has it in any case.
    out = s_client(at, *shown("client"), "-groups", "X25519MLKEM768")
    if tuple(map(int, openssl("version").split()[1].split(".")[:2])) >= (3, 5):
        assert "X25519MLKEM768" in out and "HTTP/1.1 200 OK" in out, out
    else:
        assert "set_groups" in out or "Error with command" in out or "Call to SSL_CONF_cmd" in out, out


@area.case("door", only="through")
def s_client_resumes_and_is_known_again(at):
    kept = area.lab.path("session")
    out = s_client(at, *shown("client"), "-sess_out", kept)
    assert "New, TLSv1.3" in out and "HTTP/1.1 200 OK" in out, out
    for _ in range(2):
        out = s_client(at, *shown("client"), "-sess_in", kept)
        # The certificate is not sent again: who it is comes out of the ticket.
        assert "Reused, TLSv1.3" in out and "HTTP/1.1 200 OK" in out and "URI=spiffe://shop/client" in out, out
    assert "Max Early Data: 0" in out, out


@area.case("door", only="through")
def another_groups_key_share_is_asked_for_again(at):
    out = s_client(at, *shown("client"), "-groups", "P-256:X25519")
    assert "HTTP/1.1 200 OK" in out, out


def refused(name, who, alert, reason, words, *options, mesh="door"):
    """s_client is refused by an alert, and log and metric say why in one word."""
    def case(at):
        door = area.door if mesh == "door" else area.old
        before = counted(door, reason)
        out = s_client(at, *(shown(who) if who else []), *options)
        assert f"alert {alert}" in out and "HTTP/1.1" not in out, out
        wait_for(lambda: counted(door, reason) > before, f"the metric counts {reason}")
        line = wait_for(lambda: [one for one in lines(door, reason) if words in json.dumps(one)], f"a line with {words}")[-1]
        assert line["side"] == "client", line
    area.case(mesh, only="through", name=f"s-client-{name}")(case)


NONE, LATE, BAD = "client_certificate_missing", "client_certificate_expired", "client_untrusted"
refused("without-a-certificate", None, "certificate required", NONE, "it showed no certificate")
refused("expired", "expired", "certificate expired", LATE, "expired at")
refused("of-another-root", "foreign", "unknown ca", BAD, "no root of its trust domain")
refused("revoked", "revoked", "certificate revoked", BAD, "is revoked")
refused("with-a-common-name-alone", "nameless", "certificate unknown", BAD, "no SPIFFE ID")
refused("with-a-dns-name-alone", "dns-only", "certificate unknown", BAD, "no SPIFFE ID")
refused("with-two-ids", "two-ids", "certificate unknown", BAD, "has 2 URIs")
refused("with-another-uri", "no-spiffe", "certificate unknown", BAD, "begins with `spiffe://`")
refused("by-tls-1-2", "client", "protocol version", "client_tls_failed", "mutual TLS", "-tls1_2")
refused("by-tls-1-1", "client", "handshake failure", "client_tls_failed", "mutual TLS", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
refused("by-another-alpn", "client", "no application protocol", "client_tls_failed", "mutual TLS", "-alpn", "postgresql")
refused("by-an-unknown-group", "client", "handshake failure", "client_tls_failed", "mutual TLS", "-groups", "ffdhe2048")
refused("without-a-certificate-by-tls-1-2", None, "certificate required", NONE, "it showed no certificate", "-tls1_2", mesh="old")


@area.case("door", only="through")
def who_refuses_our_certificate_is_told_of(at):
    before = counted(area.door, "tls_refused_by_client")
    folder = area.who["client"]
    out = s_client(at, "-cert", folder / "cert.pem", "-key", folder / "key.pem", "-CAfile", area.who["foreign"] / "roots.pem",
                   "-verify_return_error")
    assert "HTTP/1.1" not in out, out
    wait_for(lambda: counted(area.door, "tls_refused_by_client") > before, "the refusal is counted")
    line = wait_for(lambda: lines(area.door, "tls_refused_by_client"), "a line")[-1]
    assert "unknown_ca" in json.dumps(line), line


@area.case("old", only="through")
def tls_1_2_where_it_is_asked_for(at):
    kept = area.lab.path("old-session")
    out = s_client(at, *shown("client"), "-tls1_2", "-sess_out", kept)
    assert "New, TLSv1.2, Cipher is ECDHE" in out and "URI=spiffe://shop/client" in out, out
    out = s_client(at, *shown("client"), "-tls1_2", "-sess_in", kept)
    assert "Reused, TLSv1.2" in out and "URI=spiffe://shop/client" in out, out


@area.case("old", only="through")
def nothing_is_renegotiated(at):
    # s_client waits for an answer that it does not get, until the door's own clock for idle connections ends it.
    out = openssl("s_client", "-connect", at.address, *shown("client"), "-tls1_2", check=False, told="R\n")
    assert "New, TLSv1.2" in out and "RENEGOTIATING" in out and out.count("Certificate chain") == 1, out
    assert "unexpected eof" in out or "no renegotiation" in out, out


def curl(at, who, *options, check=True):
    folder = area.who[who]
    done = subprocess.run([find("curl"), "-sS", "--max-time", "20", "--noproxy", "*", "--connect-to", f"::{at.address}",
                           "--cacert", area.who["ours"] / "roots.pem", "--cert", folder / "cert.pem", "--key", folder / "key.pem",
                           *options, "https://ours.test/echo"], capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise RuntimeError(f"curl ended with {done.returncode}: {done.stderr}")
    return done


def fingerprint(who):
    pem = (area.who[who] / "cert.pem").read_text()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[:pem.index("-----END") + 26])).hexdigest()


@area.case("door", only="through")
def curl_over_http_1_and_2(at):
    for flag, version in (("--http1.1", "1.1"), ("--http2", "2.0")):
        seen = json.loads(curl(at, "client", flag, "-d", "x" * 90000, "-H", "Expect:", "-H", "X-Forwarded-Client-Cert: URI=a").stdout)
        assert seen["version"] == version and seen["size"] == 90000, seen
        assert seen["client_cert"] == f"By={OURS};Hash={fingerprint('client')};URI=spiffe://shop/client", seen


@area.case("door", only="through")
def curl_with_a_proven_name_that_no_rule_lets_in(at):
    for flag in ("--http1.1", "--http2"):
        out = curl(at, "uninvited", flag, "-i").stdout
        assert re.match(r"HTTP/[\d.]+ 403 ", out) and "reason=denied" in out, out
    found = wait_for(lambda: lines(area.door, "denied")[1:], "a line for each")
    assert found[-1]["client_id"] == "spiffe://shop/uninvited", found


@area.case("door", only="through")
def curl_that_is_refused_gets_no_answer(at):
    for who in ("expired", "foreign", "revoked"):
        for flag in ("--http1.1", "--http2"):
            done = curl(at, who, flag, check=False)
            assert done.returncode in (35, 56, 16, 55) and not done.stdout, (done.returncode, done.stdout)


def python(who, alpn=("http/1.1",), roots="ours"):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(area.who[roots] / "roots.pem")
    made.load_cert_chain(area.who[who] / "cert.pem", area.who[who] / "key.pem")
    made.set_alpn_protocols(list(alpn))
    return made


@area.case("door", only="through")
def pythons_ssl(at):
    session, made = None, python("client", ("h2", "http/1.1"))
    made.set_alpn_protocols(["http/1.1"])
    for turn in range(3):
        bare = socket.create_connection((at.host, at.port), timeout=10)
        with made.wrap_socket(bare, server_hostname="ours.test", session=session) as secure:
            assert (secure.version(), secure.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
            assert ("URI", OURS) in secure.getpeercert()["subjectAltName"], secure.getpeercert()
            assert secure.session_reused == (turn > 0), turn
            secure.sendall(REQUEST.encode())
            answer = b""
            while block := secure.recv(65536):
                answer += block
            assert answer.startswith(b"HTTP/1.1 200 ") and b"URI=spiffe://shop/client" in answer, answer
            session = secure.session


@area.case("door", only="through")
def a_name_that_is_not_in_our_certificate_is_pythons_to_refuse(at):
    bare = socket.create_connection((at.host, at.port), timeout=10)
    try:
        python("client").wrap_socket(bare, server_hostname="other.test")
    except ssl.SSLCertVerificationError as error:
        assert "other.test" in str(error), error
    else:
        raise AssertionError("a certificate for ours.test was taken for other.test")


@contextlib.contextmanager
def called(who, *options, peer=None, http="-www"):
    """A real s_server, and the port of a sidecar of ours that calls it as `server`."""
    lab, port, out = area.lab, area.lab.port(), area.lab.port()
    folder = area.who[who]
    running = [lab.start(f"s_server-{port}", [
        find("openssl"), "s_server", "-accept", f"{LOOPBACK}:{port}", "-cert", folder / "cert.pem", "-key", folder / "key.pem",
        http, *options], ready=port)]
    running.append(lab.sidecar(f"s_server-{port}-out", {
        "identity": envoy.identity(area.who["ours"], crls=[str(lab.path("crl") / "crl.pem")]),
        "outbound": {"listen": f"{LOOPBACK}:{out}"},
        "peers": {"server": {"static": [f"{LOOPBACK}:{port}"], "protocol": "http1", "retry": "off",
                             "mtls": {"id": peer or f"spiffe://shop/{who}"}}}}))
    try:
        yield running[1], out
    finally:
        for process in reversed(running):
            process.stop()
            lab.running.remove(process)


def ask(port):
    done = subprocess.run([find("curl"), "-sS", "-i", "--max-time", "20", "--noproxy", "*", "-H", "Host: server",
                           f"http://{LOOPBACK}:{port}/"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asks_for_ours():
    return ["-Verify", "4", "-verify_return_error", "-CAfile", area.who["ours"] / "roots.pem"]


@area.case("door", only="through")
def s_server_is_called_and_asks_who_we_are(at):
    with called("client", *asks_for_ours(), "-tls1_3") as (sidecar, out):
        for _ in range(3):
            page = ask(out)
            # s_server closes after each page, so the later ones resume.
            assert page.startswith("HTTP/1.1 200 ") and "TLSv1.3" in page, page
        # s_server says whose certificate was proven to it, in a new handshake or of a session.
        assert "Reused, TLSv1.3" in page, page
        assert "Peer certificate" in page or "Certificate:" in page or "Client certificate" in page, page


def bad_server(name, who, reason, words, *options, peer="spiffe://shop/*", alert=None):
    """We refuse a server, or it refuses us: the caller's answer says why."""
    def case(at):
        with called(who, *[option() if callable(option) else option for option in options], peer=peer) as (sidecar, out):
            page = ask(out)
            assert page.startswith("HTTP/1.1 502 ") and f"reason={reason}" in page and words in page, page
            line = wait_for(lambda: lines(sidecar, reason), "a line")[-1]
            assert line["side"] == "peer" and counted(sidecar, reason) == 1, line
            if alert:
                server = area.lab.path(f"{sidecar.name.removesuffix('-out')}.log")
                wait_for(lambda: f"alert {alert}" in server.read_text(), f"s_server heard {alert}")
    area.case("door", only="through", name=f"s-server-{name}")(case)


bad_server("somebody-else", "client", "peer_identity_mismatch", "it is `spiffe://shop/client`, but must be `spiffe://shop/b`",
           peer="spiffe://shop/b", alert="certificate unknown")
bad_server("expired", "expired", "peer_certificate_expired", "expired at", alert="certificate expired")
bad_server("of-another-root", "foreign", "peer_untrusted", "no root of its trust domain", alert="unknown ca")
bad_server("revoked", "revoked", "peer_untrusted", "is revoked", alert="certificate revoked")
bad_server("with-a-common-name-alone", "nameless", "peer_untrusted", "no SPIFFE ID", alert="certificate unknown")
bad_server("with-two-ids", "two-ids", "peer_untrusted", "has 2 URIs", alert="certificate unknown")
bad_server("by-tls-1-2", "client", "tls_failed", "ProtocolVersion", "-tls1_2")


@area.case("door", only="through")
def s_server_that_refuses_our_certificate(at):
    refuses = ["-Verify", "4", "-verify_return_error", "-CAfile", area.who["foreign"] / "roots.pem", "-tls1_3"]
    with called("client", *refuses) as (sidecar, out):
        page = ask(out)
        assert page.startswith("HTTP/1.1 502 ") and "reason=tls_refused_by_peer" in page and "(unknown_ca)" in page, page

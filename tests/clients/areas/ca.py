"""`outrigger ca` against openssl, which nobody here wrote: what one makes the other verifies, serves and shows."""

import os
import re
import subprocess
import time

from cases import Area
from lab import LOOPBACK, find

area = Area("ca")


def openssl(*arguments, check=True, told=""):
    """What openssl says to `told`; `check` has it succeed."""
    done = subprocess.run([find("openssl"), *map(str, arguments)], capture_output=True, text=True, errors="replace",
                          timeout=30, input=told)
    if check and done.returncode:
        raise RuntimeError(f"openssl {arguments[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def ca(*arguments, code=0):
    """What `outrigger ca` says; it ends with `code`."""
    done = subprocess.run([area.lab.binary, "ca", *map(str, arguments)], capture_output=True, text=True, timeout=30)
    assert done.returncode == code, f"ca {arguments}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@area.setup
def world(lab):
    area.lab, area.ca, area.leaf = lab, lab.path("authority"), lab.path("leaf")
    ca("init", "--dir", area.ca, "--trust-domain", "shop", "--intermediate")
    ca("issue", "--service", "checkout", "--dns", "checkout.test", "--ip", LOOPBACK, "--ca", area.ca, "--out", area.leaf)
    # The cases speak with openssl, not through a mesh; each is run once, and the mesh is the least that there is.
    return {"any": lab.mesh("any", lab.serve("both.mjs"))}


def server(*options):
    """A real s_server with the leaf; gives its address."""
    port = area.lab.port()
    area.lab.start(f"s_server-{port}", [
        find("openssl"), "s_server", "-accept", f"{LOOPBACK}:{port}", "-cert", area.leaf / "cert.pem", "-key",
        area.leaf / "key.pem", "-cert_chain", area.ca / "intermediate.pem", "-www", *options], ready=port)
    return f"{LOOPBACK}:{port}"


@area.case("any", only="through")
def openssl_verifies_the_chain(at):
    cert, roots = area.leaf / "cert.pem", area.ca / "root.pem"
    for purpose in ("sslserver", "sslclient"):
        out = openssl("verify", "-x509_strict", "-purpose", purpose, "-CAfile", roots, "-untrusted", cert, cert)
        assert out.strip().endswith("OK"), out
    out = openssl("verify", "-x509_strict", "-CAfile", area.leaf / "roots.pem", area.ca / "intermediate.pem")
    assert out.strip().endswith("OK"), out
    later = str(int(time.time()) + 25 * 3600)
    out = openssl("verify", "-attime", later, "-CAfile", roots, "-untrusted", cert, cert, check=False)
    assert "certificate has expired" in out, out


@area.case("any", only="through")
def openssl_reads_what_an_svid_needs(at):
    text = openssl("x509", "-in", area.leaf / "cert.pem", "-noout", "-text")
    names = re.search(r"Subject Alternative Name:\s*(.*)", text).group(1)
    assert names == f"URI:spiffe://shop/checkout, DNS:checkout.test, IP Address:{LOOPBACK}", names
    for said in (r"Key Usage: critical\s+Digital Signature\n", r"TLS Web Server Authentication, TLS Web Client Authentication",
                 r"Basic Constraints: critical\s+CA:FALSE", r"ASN1 OID: prime256v1", r"ecdsa-with-SHA256"):
        assert re.search(said, text), f"{said}: {text}"
    serial = openssl("x509", "-in", area.leaf / "cert.pem", "-noout", "-serial").strip().split("=")[1]
    assert 24 < len(serial) <= 34, serial
    for name, length in (("root", "CA:TRUE\n"), ("intermediate", "CA:TRUE, pathlen:0\n")):
        text = openssl("x509", "-in", area.ca / f"{name}.pem", "-noout", "-text")
        assert length in text and "Certificate Sign, CRL Sign" in text and "URI:spiffe://shop\n" in text, text


@area.case("any", only="through")
def key_and_certificate_fit(at):
    public = openssl("x509", "-in", area.leaf / "cert.pem", "-noout", "-pubkey")
    assert openssl("pkey", "-in", area.leaf / "key.pem", "-pubout") == public
    assert (os.stat(area.leaf / "key.pem").st_mode & 0o777) == 0o600


@area.case("any", only="through")
def s_client_and_s_server_shake_hands_with_it(at):
    to = server("-Verify", "4", "-verify_return_error", "-CAfile", area.ca / "root.pem", "-tls1_3")
    out = openssl("s_client", "-connect", to, "-CAfile", area.ca / "root.pem", "-verify_hostname", "checkout.test",
                  "-verify_return_error", "-cert", area.leaf / "cert.pem", "-cert_chain", area.ca / "intermediate.pem",
                  "-key", area.leaf / "key.pem", "-ign_eof", told="GET / HTTP/1.0\r\n\r\n")
    # The page comes only after the server took the client's certificate.
    assert "Verification: OK" in out and "TLSv1.3" in out and "HTTP/1.0 200 ok" in out, out


@area.case("any", only="through")
def inspect_shows_an_s_server(at):
    out = ca("inspect", server("-alpn", "http/1.1", "-tls1_2"), "--sni", "checkout.test", "--roots", area.ca / "root.pem")
    for said in ("version      TLS 1.2, cipher TLS_ECDHE_ECDSA_", "ALPN         http/1.1", "client cert  not asked for",
                 "SPIFFE ID  spiffe://shop/checkout", "the chain verifies up to the roots"):
        assert said in out, f"{said}: {out}"


@area.case("any", only="through")
def inspect_shows_what_an_s_server_asks_and_refuses(at):
    to = server("-Verify", "4", "-verify_return_error", "-CAfile", area.ca / "root.pem", "-tls1_3")
    out = ca("inspect", to, code=1)
    assert "asked for; none was shown" in out and "alert certificate_required" in out, out
    out = ca("inspect", to, "--cert", area.leaf / "cert.pem", "--key", area.leaf / "key.pem")
    assert "asked for, and yours was shown" in out and "spiffe://shop/checkout" in out, out
    other = area.lab.path("stranger")
    ca("init", "--dir", other, "--trust-domain", "shop")
    ca("issue", "--service", "checkout", "--ca", other, "--out", other / "leaf")
    out = ca("inspect", to, "--cert", other / "leaf" / "cert.pem", "--key", other / "leaf" / "key.pem", code=1)
    assert "REFUSED      the server sent the alert unknown_ca" in out, out


@area.case("any", only="through")
def inspect_reads_what_openssl_made(at):
    cert, key = area.lab.path("rsa.pem"), area.lab.path("rsa.key")
    openssl("req", "-x509", "-newkey", "rsa:1024", "-sha1", "-nodes", "-days", "2", "-keyout", key, "-out", cert, "-subj",
            "/C=DE/O=Old GmbH/CN=old", "-addext", "subjectAltName=DNS:old.test,URI:spiffe://shop/a,URI:spiffe://shop/b")
    out = ca("inspect", cert)
    for said in ("CN=old", "RSA 1024 bits (too short, not accepted)", "RSA with SHA-1 (broken, not accepted)", "DNS        old.test",
                 "URI        spiffe://shop/a, spiffe://shop/b"):
        assert said in out, f"{said}: {out}"
    assert "not shown" in ca("inspect", key)


@area.case("any", only="through")
def a_ca_that_openssl_made_issues(at):
    folder = area.lab.path("theirs")
    folder.mkdir()
    key, cert = folder / "root.key", folder / "root.pem"
    # In the older form of a key, SEC1, and without a SPIFFE ID.
    key.write_text(openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout"))
    openssl("req", "-x509", "-new", "-key", key, "-days", "9", "-out", cert, "-subj", "/C=DE/O=Theirs AG/CN=Theirs")
    ca("issue", "--service", "checkout", "--ca", folder, "--out", folder / "leaf", code=1)
    ca("issue", "--service", "checkout", "--trust-domain", "shop", "--ca", folder, "--out", folder / "leaf")
    out = openssl("verify", "-CAfile", cert, folder / "leaf" / "cert.pem")
    assert out.strip().endswith("OK"), out

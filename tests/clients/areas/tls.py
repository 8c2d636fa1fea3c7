"""TLS: passed through by SNI, terminated at the inbound door (curl over HTTP/1.1 and HTTP/2), originated to a peer."""

import json
import re
import subprocess

from areas.curl import curl
from cases import Area
from lab import LOOPBACK, find

area = Area("tls")


def certificate(lab, name):
    """A self-signed certificate for `name` that is its own root; returns the paths of certificate and key."""
    cert, key = lab.path(f"{name}.pem"), lab.path(f"{name}.key")
    subprocess.run(
        [find("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", key, "-out", cert, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
         "-addext", "basicConstraints=critical,CA:FALSE"], check=True, capture_output=True)
    key.chmod(0o644)
    return str(cert), str(key)


def nginx_tls(lab, cert, key):
    """A real nginx that speaks HTTPS, HTTP/1.1 and HTTP/2."""
    port = lab.port()
    file = lab.path("tls-nginx.conf")
    file.write_text(f"""
        daemon off; master_process off; pid {lab.path('tls-nginx.pid')}; error_log {lab.path('tls-nginx.log')} notice;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {lab.path('tmp-body')}; proxy_temp_path {lab.path('tmp-proxy')};
            fastcgi_temp_path {lab.path('tmp-f')}; uwsgi_temp_path {lab.path('tmp-u')}; scgi_temp_path {lab.path('tmp-s')};
            server {{
                listen {LOOPBACK}:{port} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key};
                location / {{ default_type text/plain; return 200 "nginx $server_protocol $ssl_server_name $host"; }}
            }}
        }}""")
    lab.start("nginx", [find("nginx"), "-c", file, "-p", lab.folder], ready=port)
    return port


@area.setup
def world(lab):
    area.app_cert, app_key = certificate(lab, "pass.test")
    area.door_cert, door_key = certificate(lab, "door.test")
    secure = nginx_tls(lab, area.app_cert, app_key)
    door = {"tls": {"certificate": area.door_cert, "key": door_key}}
    both = lab.serve("both.mjs")
    meshes = {
        # the name on the wire decides: pass.test reaches the app's own TLS, everything else ends at the door
        "pass": lab.mesh("pass", secure, peer={"protocol": "tcp"}, inbound={"passthrough": ["pass.test"], **door}),
        "ends": lab.mesh("ends", both, peer={"protocol": "tcp"}, inbound=door),
        "open": lab.mesh("open", both),
    }
    if not lab.direct:
        out = lab.port()
        area.originate = lab.sidecar("originate-out", {
            "outbound": {"listen": f"{LOOPBACK}:{out}"},
            "peers": {"secure": {"static": [f"{LOOPBACK}:{secure}"], "tls": {"roots": area.app_cert, "sni": "pass.test"}}}})
        meshes["originate"] = meshes["pass"]
        area.originate_port = out
    else:
        meshes["originate"] = meshes["pass"]
    return meshes


def https(at, name, cert, port, *options, path="/", check=True):
    """curl over TLS to `port` with `name` as SNI and authority, verified against `cert`."""
    url = f"https://{name}{path}"
    done = subprocess.run([find("curl"), "-sS", "--max-time", "20", "--noproxy", "*", "--cacert", cert, "--connect-to",
                           f"::{at.host}:{port}", *options, url], capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise RuntimeError(f"curl ended with {done.returncode}: {done.stderr}")
    return done.stdout


@area.case("pass")
def passed_through_by_sni(at):
    port = at.port if at.direct else at.tcp
    out = [https(at, "pass.test", area.app_cert, port, flag) for flag in ("--http1.1", "--http2")]
    assert out == ["nginx HTTP/1.1 pass.test pass.test", "nginx HTTP/2.0 pass.test pass.test"], out
    return out


@area.case("pass")
def openssl_sees_the_apps_certificate(at):
    port = at.port if at.direct else at.tcp
    done = subprocess.run([find("openssl"), "s_client", "-connect", f"{at.host}:{port}", "-servername", "pass.test",
                           "-CAfile", area.app_cert, "-alpn", "h2,http/1.1"], capture_output=True, text=True, errors="replace", timeout=20,
                          stdin=subprocess.DEVNULL)
    found = [re.search(p, done.stdout).group(1) for p in (r"subject=(.*)", r"ALPN protocol: (.*)", r"Verification: (.*)")]
    assert found[1] == "h2" and found[2] == "OK", done.stdout
    return found


def doors(at, version):
    """The same request in plain text to the app and over TLS to the door: the app must see the same."""
    if at.direct:
        flag = "--http2-prior-knowledge" if version == "--http2" else version
        return json.loads(curl(at, "/echo", flag, "-d", "x" * 20000, "-H", "Expect:", "-H", "Host: door.test")[1])
    return json.loads(https(at, "door.test", area.door_cert, at.tcp, version, "-d", "x" * 20000, "-H", "Expect:", path="/echo"))


@area.case("ends")
def terminated_http_1_1(at):
    return doors(at, "--http1.1")


@area.case("ends")
def terminated_http_2(at):
    seen = doors(at, "--http2")
    assert seen["version"] == "2.0", seen
    return seen


@area.case("ends", only="through")
def plain_text_is_served_beside_tls(at):
    _, out = curl(type(at)(False, at.name, at.tcp, at.tcp, at.mesh), "/hello", "-o", "/dev/null", "-w", "%{http_code}")
    assert out == "200", out


@area.case("pass", only="through")
def another_sni_ends_at_the_door(at):
    done = subprocess.run([find("openssl"), "s_client", "-connect", f"{at.host}:{at.tcp}", "-servername", "door.test",
                           "-CAfile", area.door_cert], capture_output=True, text=True, errors="replace", timeout=20, stdin=subprocess.DEVNULL)
    assert "subject=CN = door.test" in done.stdout and "Verification: OK" in done.stdout, done.stdout


@area.case("ends", only="through")
def old_tls_is_refused(at):
    done = subprocess.run([find("openssl"), "s_client", "-connect", f"{at.host}:{at.tcp}", "-servername", "door.test",
                           "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], capture_output=True, text=True, errors="replace", timeout=20,
                          stdin=subprocess.DEVNULL)
    assert done.returncode and "Cipher is (NONE)" in done.stdout, done.stdout + done.stderr


@area.case("originate")
def originated_to_a_peer(at):
    if at.direct:
        return [https(at, "pass.test", area.app_cert, at.port, "--http2").split()[:3]]
    place = type(at)(False, "secure", area.originate_port, 0, at.mesh)
    seen = [curl(place, "/", flag)[1].split()[:3] for flag in ("--http1.1", "--http2-prior-knowledge")]
    assert all(s[0] == "nginx" and s[2] == "pass.test" for s in seen), seen
    return seen[:1] if seen[0][1] == "HTTP/2.0" else seen[1:]

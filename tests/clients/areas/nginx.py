"""nginx as the server: sendfile, ranges, 304, gzip, its short keep-alive, its limit of requests per connection."""

import hashlib
import http.client
import time

from areas.curl import curl
from cases import Area
from lab import LOOPBACK, find

area = Area("nginx")

CONF = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx-error.log notice;
events {{ worker_connections 512; }}
http {{
    access_log off; sendfile on; tcp_nopush on; etag on; types {{ text/plain txt; }}
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    gzip on; gzip_types text/plain; gzip_min_length 100; client_max_body_size 1m;
    server {{
        listen {host}:{port}; root {folder}/files; keepalive_timeout 75s;
        location /hello {{ default_type text/plain; return 200 "hello from nginx\n"; }}
    }}
    server {{ listen {host}:{short}; root {folder}/files; keepalive_timeout 300ms; }}
    server {{ listen {host}:{few}; root {folder}/files; keepalive_requests 7; }}
}}
"""


def nginx(lab):
    """Starts nginx with three servers; returns their ports: plain, short keep-alive, few requests per connection."""
    port, short, few = lab.port(), lab.port(), lab.port()
    files = lab.path("files")
    files.mkdir()
    (files / "text.txt").write_text("".join(f"line {n} of a text that compresses\n" for n in range(2000)))
    with open(files / "huge.bin", "wb") as huge:
        huge.truncate(1 << 30)
    conf = lab.path("nginx.conf")
    conf.write_text(CONF.format(folder=lab.folder, host=LOOPBACK, port=port, short=short, few=few))
    lab.start("nginx", [find("nginx"), "-c", conf, "-p", lab.folder, "-e", lab.path("nginx-error.log")], ready=port)
    return port, short, few


@area.setup
def world(lab):
    port, short, few = nginx(lab)
    return {"plain": lab.mesh("plain", port), "short": lab.mesh("short", short), "few": lab.mesh("few", few)}


def fields(out):
    """The status line and the fields that nginx decides about."""
    lines = out.split("\r\n\r\n")[0].split("\r\n")
    return [lines[0], *sorted(line for line in lines[1:] if line.lower().startswith(
        ("content-", "etag", "last-modified", "accept-ranges", "vary", "server")))]


@area.case("plain")
def whole_file(at):
    _, out = curl(at, "/text.txt", "--http1.1", "-i")
    return fields(out), hashlib.sha256(out.encode("latin-1").split(b"\r\n\r\n", 1)[1]).hexdigest()


@area.case("plain")
def ranges(at):
    _, one = curl(at, "/text.txt", "-i", "-r", "100-199")
    _, several = curl(at, "/text.txt", "-r", "0-9,100-109", "-w", " %{http_code} %{size_download}")
    _, beyond = curl(at, "/text.txt", "-r", "9999999-", "-o", "/dev/null", "-w", "%{http_code} %header{content-range}")
    assert " 206 " in one and beyond.startswith("416 "), (one, beyond)
    return fields(one), one[-100:], several[-8:], beyond


@area.case("plain")
def not_modified(at):
    _, tag = curl(at, "/text.txt", "-I", "-o", "/dev/null", "-w", "%header{etag}")
    _, out = curl(at, "/text.txt", "-i", "-H", f"If-None-Match: {tag}")
    assert out.startswith("HTTP/1.1 304"), out
    return fields(out), out.split("\r\n\r\n", 1)[1]


@area.case("plain")
def gzip(at):
    """nginx stops compressing when it sees `Via`: a sidecar adds none."""
    _, out = curl(at, "/text.txt", "-i", "-H", "Accept-Encoding: gzip", "-o", "/dev/null", "-D", "-")
    assert "Content-Encoding: gzip" in out, out
    _, text = curl(at, "/text.txt", "--compressed")
    return fields(out), hashlib.sha256(text.encode("latin-1")).hexdigest()


@area.case("plain")
def http_1_0(at):
    status, *rest = fields(curl(at, "/text.txt", "--http1.0", "-i")[1])
    return status.split(" ", 1)[1], rest  # either minor version may stand in an answer to 1.0


@area.case("plain")
def too_large_for_nginx(at):
    code, out = curl(at, "/hello", "-T", "/usr/bin/env", "-H", "Content-Length: 20000000", "-H", "Expect: 100-continue",
                     "--expect100-timeout", "20", "-o", "/dev/null", "-w", "%{http_code}", check=False)
    assert out == "413", (code, out)
    return out


@area.case("short")
def keep_alive_shorter_than_ours(at):
    """Requests around the moment at which nginx closes its idle connection: none may fail."""
    seen = []
    connection = http.client.HTTPConnection(at.host, at.port, timeout=20)
    for pause in [0.25, 0.29, 0.295, 0.299, 0.3, 0.301, 0.302, 0.305, 0.31, 0.35] * 2:
        if at.direct:  # the client itself has to cope there
            connection.close()
        connection.request("GET", "/text.txt", headers={"Host": at.name})
        answer = connection.getresponse()
        answer.read()
        seen.append(answer.status)
        time.sleep(pause)  # the pause is the subject: nginx's 300 ms, from both sides
    connection.close()
    assert set(seen) == {200}, seen
    return seen


@area.case("few")
def few_requests_per_connection(at):
    seen = [curl(at, "/text.txt", "--http1.1", "-o", "/dev/null", "-w", "%{http_code}")[1] for _ in range(10)]
    connection = http.client.HTTPConnection(at.host, at.port, timeout=20)
    for _ in range(60):
        connection.request("GET", "/text.txt", headers={"Host": at.name})
        answer = connection.getresponse()
        seen.append((answer.status, len(answer.read())))
        if at.direct and answer.will_close:
            connection.close()
    connection.close()
    return seen

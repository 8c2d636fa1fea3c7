"""One gibibyte each way, and callers that stand still: memory moves by no more than the documented buffers."""

import socket

from areas.curl import curl
from areas.nginx import nginx
from cases import Area
from lab import wait_for

area = Area("big")
SIZE = 1 << 30
ROOM = 24 << 20  # bytes that one sidecar may grow by during a transfer: its buffers, and the allocator's habits


@area.setup
def world(lab):
    both = lab.serve("both.mjs")
    return {"web": lab.mesh("web", lab.serve("web.py")), "nginx": lab.mesh("nginx", nginx(lab)[0]),
            "both": lab.mesh("both", both), "down": lab.mesh("down", both, peer={"protocol": "http1"})}


def grown(at, before):
    """Fails when a sidecar grew by more than ROOM since `before`."""
    for name, was, now in zip(("outbound", "inbound"), before, at.mesh.memory()):
        assert now - was < ROOM, f"the {name} sidecar grew from {was >> 20} to {now >> 20} MiB"


def zeros(at, path, *options):
    """Uploads SIZE zeros from /dev/zero; returns what the server counted."""
    import subprocess
    from lab import find
    source = subprocess.Popen([find("head"), "-c", str(SIZE), "/dev/zero"], stdout=subprocess.PIPE)
    try:
        done = subprocess.run([find("curl"), "-sS", "--noproxy", "*", "--max-time", "170", "--connect-to", f"::{at.address}",
                               "-T", "-", "-H", "Expect:", *options, at.url(path)], stdin=source.stdout, capture_output=True, text=True)
    finally:
        source.stdout.close()
        source.kill()
        source.wait()
    assert done.returncode == 0, f"curl ended with {done.returncode}: {done.stderr}"
    return done.stdout


@area.case("web", within=180)
def upload_of_a_gibibyte_chunked(at):
    curl(at, "/hello")
    before = at.mesh.memory()
    counted = zeros(at, "/upload", "--http1.1", "-X", "POST")
    assert counted == str(SIZE), counted
    grown(at, before)
    return counted


@area.case("web", within=180)
def upload_of_a_gibibyte_with_a_length(at):
    curl(at, "/hello")
    before = at.mesh.memory()
    counted = zeros(at, "/upload", "--http1.1", "-H", f"Content-Length: {SIZE}")
    assert counted == str(SIZE), counted
    grown(at, before)
    return counted


@area.case("both", within=180)
def upload_of_a_gibibyte_over_http_2(at):
    curl(at, "/hello", "--http2-prior-knowledge")
    before = at.mesh.memory()
    counted = zeros(at, "/upload", "--http2-prior-knowledge")
    assert counted == str(SIZE), counted
    grown(at, before)
    return counted


def download(at, path, *options):
    curl(at, "/hello", *options)
    before = at.mesh.memory()
    _, out = curl(at, path, *options, "-o", "/dev/null", "-w", "%{http_code} %{size_download}", within=170)
    assert out == f"200 {SIZE}", out
    grown(at, before)
    return out


@area.case("nginx", within=180)
def download_of_a_gibibyte_by_sendfile(at):
    return download(at, "/huge.bin", "--http1.1")


@area.case("both", within=180)
def download_of_a_gibibyte_over_http_2(at):
    return download(at, f"/download?bytes={SIZE}", "--http2-prior-knowledge")


@area.case("down", within=180)
def download_of_a_gibibyte_from_http_1_to_http_2(at):
    return download(at, f"/download?bytes={SIZE}", "--http2-prior-knowledge")


@area.case("nginx", only="through", within=120)
def two_hundred_readers_stand_still(at):
    """They ask for a gibibyte each and read nothing: what is held per stream is bounded."""
    curl(at, "/hello")
    before = at.mesh.memory()
    readers = []
    for _ in range(200):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((at.host, at.port))
        reader.sendall(f"GET /huge.bin HTTP/1.1\r\nHost: {at.name}\r\n\r\n".encode())
        readers.append(reader)
    for reader in readers:
        reader.settimeout(20)
        assert reader.recv(12) == b"HTTP/1.1 200"
    stands = [at.mesh.memory()]

    def steady():
        stands.append(at.mesh.memory())
        return len(stands) > 10 and max(max(s) - min(s) for s in zip(*stands[-10:])) < (1 << 20)
    wait_for(steady, "memory stands still", 30)
    for name, was, now in zip(("outbound", "inbound"), before, at.mesh.memory()):
        each = (now - was) / 200 / 1024
        assert each < 256, f"the {name} sidecar holds {each:.0f} KiB for each stalled reader"
    for reader in readers:
        reader.close()
    curl(at, "/hello")

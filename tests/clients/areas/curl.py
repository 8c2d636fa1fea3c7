"""curl: every version of HTTP/1 and prior-knowledge HTTP/2, framing, expectations, uploads, connection reuse."""

import json
import subprocess

from cases import Area
from lab import find

area = Area("curl")

# What the sidecars add or end at each hop; everything else must arrive as it was sent.
HOP = {"connection", "keep-alive", "te", "x-request-id", "forwarded", "x-forwarded-for", "x-forwarded-proto",
       "x-forwarded-host", "traceparent", "tracestate"}


def end_to_end(fields):
    """The fields a caller sent, as they arrived, without those that belong to one hop or to the sidecar.

    Fields of one name stand together at the place of the first: their order among themselves and the order of the
    names are kept by the sidecars, what stood between them is not.
    """
    groups = {}
    for name, value in fields:
        if name.lower() not in HOP and not name.lower().startswith("x-outrigger-"):
            groups.setdefault(name.lower(), []).append([name, value])
    return [field for group in groups.values() for field in group]


def curl(at, path, *options, check=True, within=50):
    """Runs curl for a path of the place's service, or a whole URL; returns its exit code and output."""
    argv = [find("curl"), "--silent", "--show-error", "--max-time", str(within)]
    if "-x" not in options:
        argv += ["--noproxy", "*"] if "--unix-socket" in options else ["--noproxy", "*", "--connect-to", f"::{at.address}"]
    url = path if "://" in path else at.url(path)
    done = subprocess.run([*argv, *options, url], capture_output=True, timeout=within + 5,
                          stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise RuntimeError(f"curl ended with {done.returncode}: {done.stderr.decode()}")
    return done.returncode, done.stdout.decode("latin-1")


def echoed(at, *options):
    """What arrived at the server, ready for comparison."""
    seen = json.loads(curl(at, "/echo?q=1%20a&b=%2F", *options)[1])
    seen["fields"] = end_to_end(seen["fields"])
    return seen


@area.setup
def world(lab):
    return {
        "web": lab.mesh("web", lab.serve("web.py")),
        "both": lab.mesh("both", lab.serve("both.mjs")),
    }


@area.case("web")
def get(at):
    seen = echoed(at, "--http1.1", "-H", "X-CaSe: Kept", "-H", "x-empty;", "-H", "X-Case: twice", "-H", "Cookie: a=1; b=2")
    assert ["X-CaSe", "Kept"] in seen["fields"], seen
    return seen


@area.case("web")
def http_1_0(at):
    code, body = curl(at, "/chunked", "--http1.0")
    assert body == "one two three", body
    return body, curl(at, "/hello", "--http1.0", "-w", "%{http_code} %{size_download}")


@area.case("web")
def answer_head_case_and_order(at):
    _, out = curl(at, "/echo", "--http1.1", "-i", "-o", "/dev/null", "-D", "-")
    lines = [line for line in out.split("\r\n") if line and not line.lower().startswith(("content-length", "proxy-status",
                                                                                        "x-request-id"))]
    assert "X-MiXeD-Case: Kept" in lines and "set-cookie: b=2; Path=/" in lines, out
    return lines


@area.case("web")
def chunked(at):
    return curl(at, "/chunked", "--http1.1", "-w", "%{http_code}")


@area.case("web")
def trailers(at):
    # --raw keeps the chunked coding, so the trailer section is in what curl prints
    _, out = curl(at, "/trailers", "--http1.1", "--raw", "-H", "TE: trailers", "-H", "Connection: TE")
    assert out.lower().endswith("0\r\nx-sum: 42\r\nx-second: z\r\n\r\n"), out


@area.case("web")
def upload_chunked(at):
    seen = json.loads(curl(at, "/echo", "--http1.1", "-T", __file__, "-H", "Transfer-Encoding: chunked", "-H", "Expect:")[1])
    assert seen["size"] > 1000
    return seen["size"], seen["sha256"]


@area.case("web")
def head(at):
    return curl(at, "/hello", "--http1.1", "-I", "-o", "/dev/null", "-w", "%{http_code} %header{content-length} %{size_download}")


@area.case("web")
def no_content_and_not_modified(at):
    out = []
    for path in ("/status/204", "/status/304"):
        out.append(curl(at, path, "--http1.1", "-w", "%{http_code} %header{etag} %header{content-length} %{size_download}")[1])
    assert out[0].startswith("204 ") and out[1].startswith("304 "), out
    return out


@area.case("web")
def until_close(at):
    return curl(at, "/until-close", "--http1.1", "-w", "%{http_code} %{size_download}")


@area.case("web")
def cut_answer_is_an_error(at):
    code, _ = curl(at, "/cut", "--http1.1", check=False)
    assert code == 18, f"curl ended with {code}: a cut body was passed off as a whole one"
    return code


@area.case("web")
def one_connection_for_many_requests(at):
    _, out = curl(at, "/hello", "--http1.1", "-w", "%{num_connects}", "-o", "/dev/null", *["--next"], at.url("/hello"),
                  "-o", "/dev/null", "--connect-to", f"::{at.address}", "-w", "%{num_connects}", "--silent",
                  "--noproxy", "*")
    assert out == "10", f"connections per request: {out}"
    return out


@area.case("web")
def expect_continue(at):
    seen = json.loads(curl(at, "/echo", "--http1.1", "-d", "x" * 5000, "-H", "Expect: 100-continue",
                           "--expect100-timeout", "30")[1])
    return seen["size"], seen["sha256"]


@area.case("web")
def expect_refused_with_417(at):
    # curl repeats the request without the expectation after a 417; a raw caller stands in areas/framing.py
    _, out = curl(at, "/expect/refuse", "--http1.1", "-d", "x" * 5000, "-H", "Expect: 100-continue",
                  "--expect100-timeout", "30", "-w", " %{http_code}")
    return out


@area.case("web")
def expect_never_answered(at):
    _, out = curl(at, "/expect/never", "--http1.1", "-d", "x" * 5000, "-H", "Expect: 100-continue",
                  "--expect100-timeout", "0.2", "-w", " %{http_code}")
    assert out == "5000 200", out
    return out


@area.case("web")
def answer_before_the_body(at):
    for _ in range(20):  # a race: the answer is there before the body, and then the connection is gone
        code, out = curl(at, "/deny", "--http1.1", "-T", "/proc/self/exe", "-H", "Expect:", "-w", " %{http_code}", check=False)
        assert out == "denied 403", (code, out)


@area.case("web")
def many_methods(at):
    out = []
    for method in ("OPTIONS", "DELETE", "PATCH", "PROPFIND", "M-SEARCH"):
        seen = json.loads(curl(at, "/echo", "--http1.1", "-X", method)[1])
        out.append((seen["method"], seen["target"]))
    return out


@area.case("web")
def target_bytes_stay(at):
    out = []
    for target in ("/a//b/../c/./d", "/%7Euser/%2e%2e/x%2Fy;p=1?a=b&&c#frag", "/%E2%82%AC?q=[1]{2}|", "/echo?"):
        out.append(json.loads(curl(at, target, "--http1.1", "--path-as-is", "-g")[1])["target"])
    return out


@area.case("both")
def h2c_prior_knowledge(at):
    _, out = curl(at, "/echo", "--http2-prior-knowledge", "-d", "x" * 100000, "-H", "Expect:", "-w", " %{http_version}")
    assert '"2.0"' in out and out.endswith(" 2"), out
    return out


@area.case("both")
def h2c_trailers(at):
    _, out = curl(at, "/trailers", "--http2-prior-knowledge", "-i")
    assert "x-sum: 42" in out, out
    return [line for line in out.split("\r\n") if line.startswith(("HTTP/2", "x-sum", "x-second", "body"))]


@area.case("both")
def h2c_head_204_304(at):
    out = [curl(at, "/hello", "--http2-prior-knowledge", "-I", "-o", "/dev/null", "-w", "%{http_code} %header{content-length}")[1]]
    for path in ("/status/204", "/status/304"):
        out.append(curl(at, path, "--http2-prior-knowledge", "-w", "%{http_code} %{size_download}")[1])
    return out


@area.case("both")
def upgrade_to_h2c_is_not_offered(at):
    # curl --http2 sends `Upgrade: h2c`; an answer in HTTP/1.1 is right, and the sidecar strips the offer
    _, out = curl(at, "/hello", "--http2", "-o", "/dev/null", "-w", "%{http_code} %{http_version}")
    assert out == "200 1.1", out
    return out

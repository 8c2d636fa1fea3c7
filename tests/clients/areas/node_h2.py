"""Node's http2 as client and server: trailers, early hints, reset codes, cancellation, stalled neighbours; and over
HTTP/1 between the sidecars."""

import json
import subprocess

from cases import Area
from lab import HERE, find

area = Area("node-h2")


@area.setup
def world(lab):
    both = lab.serve("both.mjs")
    return {"both": lab.mesh("both", both),
            # HTTP/2 callers, an app that is spoken to over HTTP/1, and the other way round
            "down": lab.mesh("down", both, peer={"protocol": "http1"}),
            "up": lab.mesh("up", both, peer={"protocol": "http2"})}


def node(at, scenario):
    done = subprocess.run([find("node"), HERE / "callers" / "h2.mjs", at.address, at.name, scenario],
                          capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def scenario(name, mesh="both"):
    """A case that is one scenario of callers/h2.mjs."""
    label = name if mesh == "both" else f"{name}-{mesh}"
    return area.case(mesh, name=label)


@scenario("trailers")
def trailers(at):
    seen = node(at, "trailers")
    assert seen[0]["x-sum"] == "42" and seen[2] == {"x-check": "sum"}, seen
    return seen


@scenario("hints")
def hints(at):
    seen = node(at, "hints")
    assert seen[0] and seen[0][0][0] == 103, seen
    return seen


@scenario("resets")
def resets(at):
    seen = node(at, "resets")
    assert seen[0] == [[2, 200, 2], [8, 200, 8], [11, 200, 11]] and seen[1] == 100, seen
    return seen


@scenario("cancel")
def cancel(at):
    return node(at, "cancel")


@scenario("refused")
def refused(at):
    """Nothing was done: the caller sees the same code, or an answer that says refused_stream."""
    seen = node(at, "refused")
    assert seen in (["none", 7], [502, 0], [503, 0]), seen


@scenario("many")
def many(at):
    return node(at, "many")


@scenario("large")
def large(at):
    seen = node(at, "large")
    assert seen == [str(32 << 20), 32 << 20], seen
    return seen


@scenario("stalled")
def stalled(at):
    return node(at, "stalled")


@scenario("crumbs")
def crumbs(at):
    return node(at, "crumbs")


@scenario("heads")
def heads(at):
    return node(at, "heads")


@scenario("crumbs", "down")
def crumbs_down(at):
    """Cookie crumbs of HTTP/2 are one field in HTTP/1 (RFC 9113 §8.2.3)."""
    seen = node(at, "crumbs")
    assert seen[0] == "a=1; b=2; c=3" and seen[1] == ["a=1", "b=2"], seen
    return seen


@scenario("trailers", "down")
def trailers_down(at):
    """What HTTP/1 can carry: trailers of the answer, because the caller said `te: trailers`."""
    seen = node(at, "trailers")
    assert seen[0]["x-sum"] == "42", seen
    return seen[:2]


@scenario("large", "down")
def large_down(at):
    return node(at, "large")


@scenario("many", "down")
def many_down(at):
    return node(at, "many")


@scenario("heads", "down")
def heads_down(at):
    return node(at, "heads")


@area.case("up", name="http1-caller-http2-between")
def http_1_caller(at):
    """An HTTP/1.1 caller whose requests travel as HTTP/2: same answers, whichever version the app saw."""
    import requests
    with requests.Session() as session:
        seen = []
        for path in ("/hello", "/echo", "/status/204", "/download?bytes=1000000"):
            answer = session.post(f"http://{at.address}{path}", data=b"p" * 50000, headers={"Host": at.name}, timeout=20)
            body = answer.json() | {"version": "any"} if path == "/echo" else len(answer.content)
            seen.append((answer.status_code, body))
        return seen

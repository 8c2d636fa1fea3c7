"""The other half of areas/framing.py: what is sound or may be repaired, limits by size and time, upgrades, CONNECT."""

import time

from areas.framing import HELLO, NEXT, TE, field, post
from cases import Area
from raw import Backend, exchange, status

area = Area("framing-kept")
CLOSE = b"GET /last HTTP/1.1\r\nHost: raw\r\nConnection: close\r\n\r\n"


@area.setup
def world(lab):
    area.backend = backend = Backend()
    return {"raw": lab.mesh("raw", backend.port),
            "small": lab.mesh("small", backend.port, inbound={"protocol": "http1", "limits": {"body": "1KiB"},
                                                              "timeout": {"head": "1s", "keep-alive": "2s"}})}


def sent(at, payload, **how):
    """Sends to the app, or to the inbound door; returns the answer, its end and what whole requests arrived."""
    area.backend.reset()
    answer, ended = exchange(at.port if at.direct else at.mesh.entry, payload, **how)
    return answer, ended, [(m, t, {n.lower(): v for n, v in f}, b) for m, t, f, b in area.backend.requests]


def kept(name, payload, check):
    """A case whose request arrives whole; `check` returns what is compared between direct and through."""
    area.case("raw", name=name, within=20)(lambda at: check(*sent(at, payload)))


def bodies(answer, ended, seen):
    assert answer.count(b"HTTP/1.1 200") == len(seen) and ended, (answer, ended, seen)
    return [(m, t, b) for m, t, _, b in seen]


kept("two-requests-in-one-packet", field(b"X: y").replace(NEXT, b"") + CLOSE, bodies)
kept("get-with-a-body", b"GET /b HTTP/1.1\r\nHost: raw\r\nContent-Length: 5\r\n\r\nhello" + CLOSE, bodies)
kept("chunk-extension", post(TE, body=b"5;a=b;c=\"d\"\r\nhello\r\n0\r\n\r\n").replace(NEXT, CLOSE), bodies)
kept("chunk-size-upper-case-and-zeros", post(TE, body=b"000A\r\nhellohello\r\n0\r\n\r\n").replace(NEXT, CLOSE), bodies)
kept("coding-upper-case", post(b"transfer-ENCODING: CHUNKED", body=HELLO).replace(NEXT, CLOSE), bodies)
kept("bytes-above-7f-in-a-value", field(b"X-Obs: caf\xc3\xa9 \xff").replace(NEXT, CLOSE),
     lambda a, e, seen: [s[2].get(b"x-obs") for s in seen])
kept("spaces-around-a-value", field(b"X-Sp:   a  b \t ").replace(NEXT, CLOSE), lambda a, e, seen: [s[2].get(b"x-sp") for s in seen])
kept("options-asterisk", b"OPTIONS * HTTP/1.1\r\nHost: raw\r\n\r\n" + CLOSE, bodies)


@area.case("raw", only="through")
def http_1_0_without_length_has_no_body(at):
    answer, ended, seen = sent(at, b"POST /old HTTP/1.0\r\nHost: raw\r\n\r\n" + NEXT)
    assert ended and len(seen) <= 1 and b"SMUGGLED" not in area.backend.received, (answer, seen)


@area.case("raw", only="through")
def equal_lengths_collapse_or_are_refused(at):
    answer, _, seen = sent(at, post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello").replace(NEXT, CLOSE))
    assert status(answer) == 400 and not seen or [s[3] for s in seen] == [b"hello", b""], (answer, seen)
    assert area.backend.received.lower().count(b"content-length") <= 1, area.backend.received


@area.case("raw", only="through")
def length_and_coding_together(at):
    """RFC 9112 §6.3: refused, or the length is dropped and the connection ends after the answer."""
    answer, ended, seen = sent(at, post(b"Content-Length: 3", TE, body=HELLO))
    assert ended and b"SMUGGLED" not in area.backend.received, (answer, seen)
    assert status(answer) == 400 and not seen or (len(seen) == 1 and b"content-length" not in seen[0][2]), (answer, seen)


@area.case("raw", only="through")
def absolute_form_overrules_host(at):
    answer, _, seen = sent(at, b"GET http://raw/abs HTTP/1.1\r\nHost: evil\r\n\r\n" + CLOSE)
    hosts = [s[2].get(b"host") for s in seen]
    assert b"evil" not in hosts, (answer, hosts)
    assert status(answer) == 400 or hosts[0] == b"raw", (answer, hosts)


@area.case("raw", only="through")
def connection_cannot_strip_what_we_add(at):
    """`Connection` names end at this hop, but not the fields that the sidecar sets itself."""
    _, _, plain = sent(at, field(b"X-Keep: 1").replace(NEXT, CLOSE))
    _, _, named = sent(at, field(b"X-Keep: 1\r\nX-Drop: 2\r\nConnection: x-drop, x-request-id, x-forwarded-for, host").replace(NEXT, CLOSE))
    assert b"x-drop" not in named[0][2] and named[0][2][b"x-keep"] == b"1" and named[0][2][b"host"] == b"raw", named
    assert set(plain[0][2]) - {b"connection"} == set(named[0][2]) - {b"connection"}, (plain[0][2], named[0][2])


@area.case("raw", only="through")
def connect_is_not_served_inbound(at):
    answer, _, seen = sent(at, b"CONNECT raw:80 HTTP/1.1\r\nHost: raw:80\r\n\r\n" + NEXT)
    assert status(answer) == 405 and not seen, answer


@area.case("raw", only="through")
def upgrade_tunnels_only_after_101(at):
    """The backend answers 200: the bytes behind the request are not a tunnel's."""
    head = b"GET /ws HTTP/1.1\r\nHost: raw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" \
           b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    answer, _, seen = sent(at, head + b"\x81\x85SMUGGLED")
    assert b"SMUGGLED" not in area.backend.received and len(seen) <= 1, area.backend.received
    assert status(answer) in (200, 400), answer


@area.case("raw", only="through")
def h2c_offer_is_stripped(at):
    _, _, seen = sent(at, field(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__").replace(NEXT, CLOSE))
    assert not {b"upgrade", b"http2-settings"} & set(seen[0][2]), seen[0][2]


@area.case("small", only="through")
def slow_head_is_408(at):
    begin = time.monotonic()
    answer, ended, seen = sent(at, b"GET /slow HTTP/1.1\r\nHost: raw\r\nX: " + b"a" * 400, step=0.01)
    assert status(answer) == 408 and ended and not seen, (answer, ended)
    assert time.monotonic() - begin < 7, "the clock started anew with each byte"


@area.case("small", only="through")
def silence_after_an_answer_ends_the_connection(at):
    answer, ended, seen = sent(at, b"GET /one HTTP/1.1\r\nHost: raw\r\n\r\n")
    assert ended and len(seen) == 1 and answer.count(b"HTTP/1.1") == 1, (answer, ended)


@area.case("small", only="through")
def body_over_the_limit_is_413(at):
    answer, ended, _ = sent(at, post(b"Content-Length: 2000", body=b"b" * 2000))
    assert status(answer) == 413 and ended and not area.backend.received, (answer, ended)
    answer, ended, seen = sent(at, post(TE, body=b"7d0\r\n" + b"b" * 2000 + b"\r\n0\r\n\r\n"))
    assert status(answer) == 413 and ended and not seen, (answer, ended, seen)


@area.case("small", only="through")
def body_at_the_limit_passes(at):
    answer, _, seen = sent(at, post(b"Content-Length: 1024", body=b"b" * 1024).replace(NEXT, CLOSE))
    assert status(answer) == 200 and len(seen[0][3]) == 1024, answer

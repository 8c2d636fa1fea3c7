"""Bytes that smuggle: each is refused with a status and a closed connection, and nothing of it reaches the backend."""

from cases import Area
from raw import Backend, exchange, status

area = Area("framing")
NEXT = b"GET /SMUGGLED HTTP/1.1\r\nHost: raw\r\n\r\n"


def post(*fields, body=b"", version=b"1.1", host=b"Host: raw\r\n"):
    """A POST with the given raw field lines, each ended by CR LF, and one more request behind it."""
    return b"POST /x HTTP/" + version + b"\r\n" + host + b"".join(f + b"\r\n" for f in fields) + b"\r\n" + body + NEXT


def field(line):
    """A GET with one raw field line after Host."""
    return b"GET /x HTTP/1.1\r\nHost: raw\r\n" + line + b"\r\n\r\n" + NEXT


def chunk(raw):
    """A chunked POST whose first chunk is sound and whose second is `raw`."""
    return post(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n" + raw)


def first(line):
    """A request with this raw request line."""
    return line + b"\r\nHost: raw\r\n\r\n" + NEXT


TE = b"Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
BAD, NOT_DONE = (400,), (400, 501)

# name: (statuses, bytes). The head alone is wrong: no byte may reach the backend.
HEADS = {
    "length-hex": (BAD, post(b"Content-Length: 0x5", body=b"hello")),
    "length-plus": (BAD, post(b"Content-Length: +5", body=b"hello")),
    "length-minus-zero": (BAD, post(b"Content-Length: -0")),
    "length-empty": (BAD, post(b"Content-Length: ")),
    "length-underscore": (BAD, post(b"Content-Length: 1_0", body=b"hellohello")),
    "length-inner-space": (BAD, post(b"Content-Length: 1 0", body=b"hellohello")),
    "length-list-differs": (BAD, post(b"Content-Length: 5, 6", body=b"hello")),
    "length-twice-differs": (BAD, post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello")),
    "length-overflows": ((400, 413), post(b"Content-Length: 18446744073709551621", body=b"hello")),
    "coding-comma-first": (NOT_DONE, post(b"Transfer-Encoding: ,chunked", body=HELLO)),
    "coding-unknown": (NOT_DONE, post(b"Transfer-Encoding: xchunked", body=HELLO)),
    "coding-identity": (NOT_DONE, post(b"Transfer-Encoding: identity", body=HELLO)),
    "coding-not-last": (NOT_DONE, post(b"Transfer-Encoding: chunked, gzip", body=HELLO)),
    "coding-gzip-chunked": (NOT_DONE, post(b"Transfer-Encoding: gzip, chunked", body=HELLO)),
    "coding-chunked-chunked": (NOT_DONE, post(b"Transfer-Encoding: chunked, chunked", body=HELLO)),
    "coding-twice": (NOT_DONE, post(TE, TE, body=HELLO)),
    "coding-twice-second-unknown": (NOT_DONE, post(TE, b"Transfer-Encoding: x", body=HELLO)),
    "coding-quoted": (NOT_DONE, post(b"Transfer-Encoding: \"chunked\"", body=HELLO)),
    "coding-vertical-tab": (NOT_DONE, post(b"Transfer-Encoding: \x0bchunked", body=HELLO)),
    "coding-empty": (NOT_DONE, post(b"Transfer-Encoding: ", body=HELLO)),
    "coding-in-http-1-0": (NOT_DONE, post(TE, body=HELLO, version=b"1.0")),
    "bare-cr-in-a-value": (BAD, field(b"X: a\rY: b")),
    "bare-cr-in-a-name": (BAD, field(b"X\rY: b")),
    "nul-in-a-value": (BAD, field(b"X: a\0b")),
    "control-in-a-value": (BAD, field(b"X: a\x01b")),
    "field-without-colon": (BAD, field(b"NoColonHere")),
    "space-before-colon": (BAD, field(b"Content-Length : 5")),
    "tab-before-colon": (BAD, field(b"X-A\t: 5")),
    "space-before-the-first-field": (BAD, b"GET /x HTTP/1.1\r\n Host: raw\r\n\r\n" + NEXT),
    "folded-value": (BAD, field(b"X: a\r\n b")),
    "name-with-85": (BAD, field(b"X\x85: a")),
    "name-with-a0": (BAD, field(b"\xa0X: a")),
    "name-with-parenthesis": (BAD, field(b"X(: a")),
    "lone-colon": (BAD, field(b": a")),
    "no-host": (BAD, b"GET /x HTTP/1.1\r\nX: y\r\n\r\n" + NEXT),
    "two-hosts": (BAD, field(b"Host: other")),
    "two-equal-hosts": (BAD, field(b"Host: raw")),
    "host-with-a-list": (BAD, b"GET /x HTTP/1.1\r\nHost: raw, other\r\n\r\n" + NEXT),
    "host-with-user": (BAD, b"GET /x HTTP/1.1\r\nHost: a@raw\r\n\r\n" + NEXT),
    "host-with-path": (BAD, b"GET /x HTTP/1.1\r\nHost: raw/x\r\n\r\n" + NEXT),
    "expectation-unknown": ((417,), field(b"Expect: a-miracle")),
    # the head as a whole is over its limit too, which is what hyper sees first
    "target-too-long": ((414, 431), first(b"GET /" + b"u" * 70000 + b" HTTP/1.1")),
    "field-too-large": ((431,), field(b"X: " + b"v" * 70000)),
    "too-many-fields": ((431,), field(b"\r\n".join(b"X%d: y" % n for n in range(200)))),
    "many-small-cookies": ((431,), field(b"\r\n".join([b"Cookie: a=" + b"c" * 1000] * 100))),
}
# The request line is wrong; a detecting door may take these for another protocol than HTTP.
LINES = {
    "method-with-parenthesis": (BAD, first(b"G(T /x HTTP/1.1")),
    "method-empty": (BAD, first(b" /x HTTP/1.1")),
    "target-empty": (BAD, first(b"GET  HTTP/1.1")),
    "target-with-space": (BAD, first(b"GET /a b HTTP/1.1")),
    "target-relative": (BAD, first(b"GET x HTTP/1.1")),
    "tabs-for-spaces": (BAD, first(b"GET\t/x\tHTTP/1.1")),
    "version-1-2x": ((400, 505), first(b"GET /x HTTP/1.1x")),
    "version-2-0": ((400, 505), first(b"GET /x HTTP/2.0")),
    "version-lower-case": ((400, 505), first(b"GET /x http/1.1")),
    "http-0-9": (BAD, b"GET /x\r\n\r\n" + NEXT),
    "http-0-9-with-lf": (BAD, b"GET /x\n"),
}
# The head is sound and may be on its way; what follows breaks the framing: no whole request may reach the backend.
BODIES = {
    "chunk-size-0x": chunk(b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-plus": chunk(b"+3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-minus": chunk(b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-underscore": chunk(b"0_3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-leading-space": chunk(b" 3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-garbage": chunk(b"3g\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-empty": chunk(b"\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-overflow": chunk(b"fffffffffffffffff3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-bare-lf": chunk(b"3\nabc\r\n0\r\n\r\n"),
    "chunk-extension-bare-lf": chunk(b"3;a\nabc\r\n0\r\n\r\n"),
    "chunk-extension-bare-cr": chunk(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "chunk-extension-endless": chunk(b"3;" + b"e" * 200000 + b"\r\nabc\r\n0\r\n\r\n"),
    "chunk-end-bare-lf": chunk(b"3\r\nabc\n0\r\n\r\n"),
    "chunk-end-missing": chunk(b"3\r\nabc0\r\n\r\n"),
    "chunk-end-extra-crlf": chunk(b"3\r\nabc\r\n\r\n0\r\n\r\n"),
    "chunk-longer-than-said": chunk(b"3\r\nabcd\r\n0\r\n\r\n"),
    "last-chunk-bare-lf": chunk(b"3\r\nabc\r\n0\n\r\n"),
    "trailer-without-colon": chunk(b"3\r\nabc\r\n0\r\nNoColon\r\n\r\n"),
    "trailer-too-large": chunk(b"3\r\nabc\r\n0\r\nX: " + b"v" * 200000 + b"\r\n\r\n"),
}


@area.setup
def world(lab):
    area.backend = backend = Backend()
    return {"declared": lab.mesh("raw", backend.port, inbound={"protocol": "http1"}),
            "auto": lab.mesh("raw", backend.port)}


def port_of(at, door):
    return at.mesh.entry if door != "outbound" else at.port


def refused(at, door, statuses, payload, whole):
    """The answer is one of `statuses`, the connection ends, and the backend saw nothing (or nothing whole)."""
    area.backend.reset()
    answer, ended = exchange(port_of(at, door), payload)
    got, seen = status(answer), bytes(area.backend.received)
    assert not area.backend.requests, f"forwarded: {area.backend.requests}; answered {answer[:200]!r}"
    assert b"SMUGGLED" not in seen and (whole or not seen), f"reached the backend: {seen[:300]!r}; answered {answer[:200]!r}"
    assert got in statuses, f"answered {answer[:300]!r}, not {statuses}"
    assert ended, f"the connection stayed open after {got}"
    assert answer.count(b"HTTP/1.1 ") == (got is not None), f"more than one answer: {answer[:600]!r}"


def refused_or_rewritten(at, door, payload):
    """RFC 9112 §2.2 lets a reader take a lone LF for a line's end: then no lone LF may leave again."""
    area.backend.reset()
    answer, _ = exchange(port_of(at, door), payload, within=2)
    seen = bytes(area.backend.received)
    assert status(answer) in (200, 400), answer
    assert b"\n" not in seen.replace(b"\r\n", b""), f"a lone LF was passed on: {seen!r}"
    assert len(area.backend.requests) in (0, 2), area.backend.requests


# A lone LF where a line of the head ends.
REPAIRED = {
    "bare-lf-after-a-field": b"GET /x HTTP/1.1\r\nHost: raw\nX: y\r\n\r\n" + NEXT,
    "bare-lf-as-end-of-head": b"GET /x HTTP/1.1\r\nHost: raw\r\n\n" + NEXT,
    "bare-lf-after-the-request-line": b"GET /x HTTP/1.1\nHost: raw\r\n\r\n" + NEXT,
}


def register(name, statuses, payload, doors, whole=False):
    for door in doors:
        mesh = "auto" if door == "auto" else "declared"
        area.case(mesh, only="through", within=30, name=f"{name} ({door})")(
            lambda at, door=door: refused(at, door, statuses, payload, whole))


for key, (codes, raw) in HEADS.items():
    register(key, codes, raw, ("declared", "auto", "outbound"))
for key, (codes, raw) in LINES.items():
    register(key, codes, raw, ("declared",))
    register(key, (*codes, None), raw, ("outbound",))  # what does not look like HTTP may be cut off without a word
for key, raw in REPAIRED.items():
    for where in ("declared", "outbound"):
        area.case("declared", only="through", within=30, name=f"{key} ({where})")(
            lambda at, door=where, raw=raw: refused_or_rewritten(at, door, raw))
for key, raw in BODIES.items():
    register(key, BAD, raw, ("declared", "outbound"), whole=True)

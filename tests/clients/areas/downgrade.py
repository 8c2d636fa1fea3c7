"""HTTP/2 requests that would be something else in HTTP/1, sent by the `h2` library with its own checks off: each is
refused on its stream, nothing of it reaches the HTTP/1 backend, and a neighbour on the same connection is answered."""

import socket
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from cases import Area
from lab import LOOPBACK
from raw import Backend

area = Area("downgrade")


@area.setup
def world(lab):
    area.backend = backend = Backend()
    return {"raw": lab.mesh("raw", backend.port, peer={"protocol": "http1"}, inbound={"protocol": "http1"})}


class Caller:
    """One HTTP/2 connection without a client's good manners."""

    def __init__(self, port):
        self.line = socket.create_connection((LOOPBACK, port), timeout=10)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(
            validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None))
        self.h2.initiate_connection()
        self.status, self.resets, self.bodies, self.over, self.gone = {}, {}, {}, set(), None
        self.flush()

    def flush(self):
        try:
            self.line.sendall(self.h2.data_to_send())
        except OSError:
            pass  # closed by the other end: what it said before that is still to be read

    def send(self, fields, body=None):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, fields, end_stream=body is None)
        if body is not None:
            self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def pump(self, until, within=8.0):
        """Takes events until `until()` holds; returns whether it does."""
        end = time.monotonic() + within
        while not until() and time.monotonic() < end and self.gone is None:
            self.line.settimeout(max(0.01, end - time.monotonic()))
            try:
                block = self.line.recv(1 << 16)
                events = self.h2.receive_data(block) if block else None
            except TimeoutError:
                break
            except (OSError, h2.exceptions.ProtocolError) as error:
                self.gone = repr(error)
                break
            if events is None:
                self.gone = "closed"
                break
            for event in events:
                self.take(event)
            self.flush()
        return until()

    def take(self, event):
        if isinstance(event, h2.events.ResponseReceived):
            self.status[event.stream_id] = int(dict(event.headers)[b":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.over.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.gone = f"GOAWAY {event.error_code}"

    def done(self, stream):
        return stream in self.over or stream in self.resets


def get(path=b"/bad", *more, method=b"GET", authority=b"raw"):
    return [(b":method", method), (b":scheme", b"http"), (b":authority", authority), (b":path", path), *more]


MARK = (b"x-mark", b"SMUGGLED")
BAD = {
    "name-upper-case": (get(b"/bad", (b"X-Upper", b"1"), MARK), None),
    "name-empty": (get(b"/bad", (b"", b"1"), MARK), None),
    "name-with-colon": (get(b"/bad", (b"a:b", b"1"), MARK), None),
    "name-with-crlf": (get(b"/bad", (b"a\r\nb", b"1"), MARK), None),
    "name-with-space": (get(b"/bad", (b"a b", b"1"), MARK), None),
    "value-with-crlf": (get(b"/bad", (b"x", b"a\r\nInjected: 1"), MARK), None),
    "value-with-lf": (get(b"/bad", (b"x", b"a\nInjected: 1"), MARK), None),
    "value-with-cr": (get(b"/bad", (b"x", b"a\rb"), MARK), None),
    "value-with-nul": (get(b"/bad", (b"x", b"a\0b"), MARK), None),
    "path-with-space": (get(b"/bad HTTP/1.1\r\nX: SMUGGLED\r\n\r\n"), None),
    "path-with-a-blank": (get(b"/bad SMUGGLED"), None),
    "path-empty": (get(b"", MARK), None),
    "path-relative": (get(b"bad", MARK), None),
    "method-with-space": (get(b"/bad", MARK, method=b"GET /SMUGGLED HTTP/1.1\r\nA:"), None),
    "method-empty": (get(b"/bad", MARK, method=b""), None),
    "authority-with-space": (get(b"/bad", MARK, authority=b"raw SMUGGLED"), None),
    "authority-with-user": (get(b"/bad", MARK, authority=b"user@raw"), None),
    "host-conflicts-with-authority": (get(b"/bad", (b"host", b"other"), MARK), None),
    "two-hosts": (get(b"/bad", (b"host", b"raw"), (b"host", b"other"), MARK), None),
    "te-gzip": (get(b"/bad", (b"te", b"gzip"), MARK), None),
    "connection": (get(b"/bad", (b"connection", b"close"), MARK), None),
    "keep-alive": (get(b"/bad", (b"keep-alive", b"1"), MARK), None),
    "proxy-connection": (get(b"/bad", (b"proxy-connection", b"close"), MARK), None),
    "upgrade": (get(b"/bad", (b"upgrade", b"websocket"), MARK), None),
    "transfer-encoding": (get(b"/bad", (b"transfer-encoding", b"chunked"), MARK, method=b"POST"), b"0\r\n\r\nSMUGGLED"),
    "length-too-small": (get(b"/bad", (b"content-length", b"3"), method=b"POST"), b"abcSMUGGLED"),
    "length-too-large": (get(b"/bad", (b"content-length", b"300"), method=b"POST"), b"abc"),
    "length-without-body": (get(b"/bad", (b"content-length", b"3"), MARK, method=b"POST"), None),
    "length-twice": (get(b"/bad", (b"content-length", b"3"), (b"content-length", b"11"), method=b"POST"), b"abcSMUGGLED"),
    "length-plus": (get(b"/bad", (b"content-length", b"+3"), MARK, method=b"POST"), b"abc"),
    "pseudo-unknown": (get(b"/bad", (b":x", b"1"), MARK), None),
    "pseudo-after-field": ([(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"raw"), MARK, (b":path", b"/bad")], None),
    "pseudo-twice": (get(b"/bad", MARK) + [(b":path", b"/SMUGGLED")], None),
    "pseudo-path-missing": ([(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"raw"), MARK], None),
    "pseudo-status": (get(b"/bad", (b":status", b"200"), MARK), None),
    "protocol-without-connect": (get(b"/bad", (b":protocol", b"websocket"), MARK), None),
    "connect-with-path": ([(b":method", b"CONNECT"), (b":authority", b"raw:80"), (b":scheme", b"http"), (b":path", b"/SMUGGLED")], None),
    "connect-with-length": ([(b":method", b"CONNECT"), (b":authority", b"nowhere.test:1"), (b"content-length", b"5"), MARK], b"hello"),
    "field-too-large": (get(b"/bad", *[(b"x-%d" % n, b"v" * 1000) for n in range(70)], MARK), None),
    "too-many-fields": (get(b"/bad", *[(b"x-%d" % n, b"v") for n in range(150)], MARK), None),
}
# The h2 crate finds these while it decodes fields and ends the whole connection by GOAWAY, as RFC 9113 §5.4.1 allows.
DEADLY = {"name-upper-case", "name-empty", "name-with-colon", "name-with-crlf", "name-with-space", "value-with-crlf",
          "value-with-lf", "value-with-cr", "value-with-nul", "method-with-space", "method-empty", "pseudo-unknown"}


def refused(at, name):
    fields, body = BAD[name]
    area.backend.reset()
    area.backend.hold.clear()
    caller = Caller(at.port)
    try:
        neighbour = caller.send(get(b"/held"))
        bad = caller.send(fields, body)
        caller.pump(lambda: caller.done(bad))
        area.backend.hold.set()
        caller.pump(lambda: caller.done(neighbour))
    finally:
        area.backend.hold.set()
        caller.line.close()
    seen, status = bytes(area.backend.received), caller.status.get(bad)
    assert b"SMUGGLED" not in seen and b"Injected" not in seen, f"reached the backend: {seen!r}"
    others = [r for r in area.backend.requests if r[1] != b"/held"]
    assert not others, f"forwarded: {others}"
    if name in DEADLY:
        assert caller.gone == "GOAWAY 1" or caller.bodies.get(neighbour) == b"ok", caller.gone
    else:
        assert caller.gone is None, f"the connection died: {caller.gone}"
        assert caller.bodies.get(neighbour) == b"ok", f"the neighbour got {caller.status.get(neighbour)} {caller.resets}"
        assert caller.done(bad), "the bad stream is still open"
        assert bad in caller.resets or 400 <= (status or 0) < 600, f"answered {status}"


for each in BAD:
    area.case("raw", only="through", within=30, name=each)(lambda at, name=each: refused(at, name))


def passes(at, fields, body=None):
    area.backend.reset()
    caller = Caller(at.port)
    stream = caller.send(fields, body)
    caller.pump(lambda: caller.done(stream))
    caller.line.close()
    assert caller.bodies.get(stream) == b"ok", (caller.status, caller.resets, caller.gone)
    method, target, sent, content = area.backend.requests[-1]
    return method, target, {n.lower(): v for n, v in sent}, content


@area.case("raw", only="through")
def te_trailers_and_cookies_pass(at):
    _, _, sent, _ = passes(at, get(b"/ok", (b"te", b"trailers"), (b"cookie", b"a=1"), (b"cookie", b"b=2")))
    assert sent[b"cookie"] == b"a=1; b=2" and sent[b"host"] == b"raw", sent


@area.case("raw", only="through")
def host_equal_to_authority_passes(at):
    assert passes(at, get(b"/ok", (b"host", b"raw")))[2][b"host"] == b"raw"


@area.case("raw", only="through")
def host_without_authority_passes(at):
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/ok"), (b"host", b"raw")]
    assert passes(at, fields)[2][b"host"] == b"raw"


@area.case("raw", only="through")
def body_with_and_without_length(at):
    for more in ([(b"content-length", b"4")], []):
        assert passes(at, get(b"/ok", *more, method=b"POST"), b"body")[3] == b"body"


@area.case("raw", only="through")
def path_with_bytes_that_http_1_allows(at):
    assert passes(at, get(b"/a//b/../%2e%2e/;x?q=[1]|{2}"))[1] == b"/a//b/../%2e%2e/;x?q=[1]|{2}"

"""A server that breaks the rules: the caller gets 502 with the reason, or a body that is visibly cut; never a lie."""

import socket
import threading
import time

from cases import Area
from lab import LOOPBACK
from raw import exchange, status

area = Area("bad-server")

OK = b"HTTP/1.1 200 OK\r\n"
# name: (what the server writes before it closes, the words of which one must stand in Proxy-Status)
ANSWERS = {
    "nothing": (b"", ("reset",)),
    "half-a-head": (b"HTTP/1.1 200 OK\r\nX: y", ("reset", "bad_response", "response_incomplete")),
    "garbage": (b"\x00\x01\x02 not HTTP at all\r\n\r\n", ("bad_response",)),
    "status-two-digits": (b"HTTP/1.1 20 OK\r\n\r\n", ("bad_response",)),
    "status-not-a-number": (b"HTTP/1.1 abc OK\r\n\r\n", ("bad_response",)),
    "version-9": (b"HTTP/9.9 200 OK\r\n\r\n", ("bad_response",)),
    "lengths-differ": (OK + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\nokbad", ("bad_response",)),
    "length-not-a-number": (OK + b"Content-Length: two\r\n\r\nok", ("bad_response",)),
    "length-plus": (OK + b"Content-Length: +2\r\n\r\nok", ("bad_response",)),
    "field-without-colon": (OK + b"NoColon\r\nContent-Length: 2\r\n\r\nok", ("bad_response",)),
    "nul-in-a-value": (OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\nok", ("bad_response",)),
    "space-before-colon": (OK + b"X : a\r\nContent-Length: 2\r\n\r\nok", ("bad_response",)),
    "switching-unasked": (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw bytes",
                          ("bad_response", "upgrade_failed")),
    "head-too-large": (OK + b"X: " + b"v" * 200000 + b"\r\n\r\n", ("response_head_too_large",)),
    "too-many-fields": (OK + b"".join(b"X-%d: y\r\n" % n for n in range(500)) + b"\r\n", ("response_head_too_large",)),
}
# name: (what the server writes before it closes, the body as far as it may reach the caller)
CUTS = {
    "short-of-its-length": (OK + b"Content-Length: 10\r\n\r\n12345", b"12345"),
    "chunk-cut": (OK + b"Transfer-Encoding: chunked\r\n\r\nA\r\n12345", b"12345"),
    "no-last-chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", b"12345"),
    "chunk-size-garbage": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\nzz\r\n", b"12345"),
}


class Server(threading.Thread):
    """Reads a head and writes what the path names; closes then."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server((LOOPBACK, 0), backlog=64)
        self.port, self.asked = self.listener.getsockname()[1], 0
        self.start()

    def run(self):
        while True:
            line, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(line,), daemon=True).start()

    def serve(self, line):
        with line:
            try:
                head = b""
                while b"\r\n\r\n" not in head:
                    block = line.recv(65536)
                    if not block:
                        return
                    head += block
                self.asked += 1
                name = head.split(b" ")[1].decode().lstrip("/")
                line.sendall({**ANSWERS, **CUTS}.get(name, (OK + b"Content-Length: 2\r\n\r\nok",))[0])
                line.shutdown(socket.SHUT_WR)
                while line.recv(65536):
                    pass
            except OSError:
                pass


@area.setup
def world(lab):
    area.server = Server()
    dead, silent = lab.port(), socket.create_server((LOOPBACK, 0), backlog=1)
    area.silent = silent  # takes connections into its backlog and never says a word
    return {"bad": lab.mesh("bad", area.server.port), "dead": lab.mesh("dead", dead),
            "silent": lab.mesh("silent", silent.getsockname()[1], inbound={"timeout": {"request": "1s"}})}


def ask(at, path, method="POST"):
    """One request at the inbound door, closed after it; POST, so that nothing may be tried twice."""
    return exchange(at.mesh.entry, f"{method} /{path} HTTP/1.1\r\nHost: {at.name}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def invented(answer, statuses, words):
    head, _, _ = answer.partition(b"\r\n\r\n")
    said = [line for line in head.decode("latin-1").split("\r\n") if line.lower().startswith("proxy-status:")]
    assert status(answer) in statuses, f"answered {answer[:300]!r}"
    assert said and any(word in said[0] for word in words), f"Proxy-Status: {said}, wanted one of {words}"


def answered(at, name):
    area.server.asked = 0
    answer, ended = ask(at, name)
    invented(answer, (502,), ANSWERS[name][1])
    assert ended and answer.count(b"HTTP/1.1") == 1 and area.server.asked == 1, (answer, area.server.asked)


for each in ANSWERS:
    area.case("bad", only="through", within=20, name=each)(lambda at, name=each: answered(at, name))


def cut(at, name):
    """The head is out already: the end of the body must not look like its end."""
    answer, ended = ask(at, name)
    head, _, body = answer.partition(b"\r\n\r\n")
    if status(answer) == 502:
        return  # noticed before anything was passed on
    assert status(answer) == 200 and ended, answer
    if b"chunked" in head.lower():
        assert not body.endswith(b"0\r\n\r\n"), f"a cut body was ended as whole: {answer!r}"
    else:
        assert f"content-length: {len(body)}" not in head.decode("latin-1").lower() and b"content-length" in head.lower(), answer


for each in CUTS:
    area.case("bad", only="through", within=20, name=each)(lambda at, name=each: cut(at, name))


@area.case("dead", only="through")
def nobody_listens(at):
    for turn in range(30):  # with and without the request's bytes there when the connection is taken
        with socket.create_connection((LOOPBACK, at.mesh.entry), timeout=10) as line:
            if turn % 2:
                time.sleep(0.02)  # the sidecar dials before the caller has said a word
            line.sendall(b"GET /x HTTP/1.1\r\nHost: dead\r\nConnection: close\r\n\r\n")
            invented(b"".join(iter(lambda: line.recv(65536), b"")), (502, 503), ("connect_refused",))


@area.case("silent", only="through")
def no_answer_within_the_request_timeout(at):
    answer, _ = ask(at, "x")
    invented(answer, (504,), ("deadline_passed", "response_timeout"))

"""A small HTTP/1 server on bare sockets, for what real servers do seldom: web.py PORT [BIND…] [unix:PATH].

It reads heads as they are (case, order), so that a case can compare what arrives; each path below is one behaviour.
"""

import collections
import hashlib
import json
import os
import socket
import sys
import threading
from urllib.parse import parse_qs, urlsplit

TICKETS = collections.defaultdict(lambda: threading.Semaphore(0))


class Gone(Exception):
    """The caller closed the connection."""


class Exchange:
    """One request and the way to answer it."""

    def __init__(self, stream, head):
        self.stream = stream
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, self.version = lines[0].split(" ")
        self.fields = [tuple(line.split(":", 1)) for line in lines[1:] if line]
        self.fields = [(name, value.strip()) for name, value in self.fields]
        url = urlsplit(self.target)
        self.path, self.query = url.path, {k: v[0] for k, v in parse_qs(url.query).items()}
        self.size, self.digest, self.trailers, self.keep = 0, hashlib.sha256(), [], self.version == "HTTP/1.1"
        if (self.get("connection") or "").lower() == "close":
            self.keep = False

    def get(self, name):
        return next((v for n, v in self.fields if n.lower() == name), None)

    def read(self, digest=True):
        """Reads the body to its end, in either framing."""
        def take(count):
            while count:
                block = self.stream.read1(min(count, 1 << 18))
                if not block:
                    raise Gone
                count -= len(block)
                self.size += len(block)
                if digest:
                    self.digest.update(block)
        if "chunked" in (self.get("transfer-encoding") or "").lower():
            while size := int(self.stream.readline().split(b";")[0] or b"0", 16):
                take(size)
                self.stream.readline()
            while (line := self.stream.readline().strip()):
                self.trailers.append(line.decode("latin-1").split(": ", 1))
        else:
            take(int(self.get("content-length") or 0))

    def send(self, text):
        self.stream.write(text.encode("latin-1") if isinstance(text, str) else text)
        self.stream.flush()

    def answer(self, body=b"", status="200 OK", fields=(), length=True):
        body = body.encode() if isinstance(body, str) else body
        head = [f"HTTP/1.1 {status}", "Date: Thu, 01 Jan 2026 00:00:00 GMT"]
        head += [f"{n}: {v}" for n, v in fields]
        head += [f"Content-Length: {len(body)}"] if length else []
        head += [] if self.keep else ["Connection: close"]
        self.send("\r\n".join(head) + "\r\n\r\n")
        if self.method != "HEAD":
            self.send(body)

    def chunks(self, blocks, trailers=(), fields=()):
        """A chunked answer; to an HTTP/1.0 caller the same bytes, ended by the end of the connection."""
        fields = [("Content-Type", "text/plain"), *fields]
        if self.version == "HTTP/1.0":
            return self.answer(b"".join(blocks), fields=fields, length=False)
        if trailers:
            fields.append(("Trailer", ", ".join(n for n, _ in trailers)))
        self.answer(fields=[*fields, ("Transfer-Encoding", "chunked")], length=False)
        for block in blocks:
            self.send(b"%x\r\n%s\r\n" % (len(block), block))
        self.send("0\r\n" + "".join(f"{n}: {v}\r\n" for n, v in trailers) + "\r\n")


def echo(x):
    x.read()
    body = json.dumps({"method": x.method, "target": x.target, "version": x.version, "fields": x.fields,
                       "size": x.size, "sha256": x.digest.hexdigest(), "trailers": x.trailers})
    x.answer(body, fields=[("Content-Type", "application/json"), ("X-MiXeD-Case", "Kept"), ("Set-Cookie", "a=1"),
                           ("set-cookie", "b=2; Path=/"), ("x-last", "\"quoted\", plain")])


def hello(x):
    x.read()
    x.answer(b"x" * 99 + b"\n")


def chunked(x):
    x.read()
    x.chunks([b"one ", b"two ", b"three"])


def trailers(x):
    x.read()
    x.chunks([b"body"], [("X-Sum", "42"), ("X-Second", "z")])


def status(x):
    x.read()
    code = x.path.rsplit("/", 1)[1]
    x.answer(status=f"{code} Whatever", fields=[("ETag", '"e1"')], length=code not in ("204", "304"))


def until_close(x):
    x.read()
    x.keep = False
    x.answer(b"till the end " * 1000, length=False)


def refuse(x):
    """417 instead of 100: the body is never read."""
    x.keep = False
    x.answer("no", status="417 Expectation Failed")


def never(x):
    """No 100 at all: a caller sends its body after a wait of its own."""
    x.read()
    x.answer(f"{x.size}")


def deny(x):
    """The final answer comes before the body is read; then the rest is drained so that no reset eats the answer."""
    x.keep = False
    x.answer("denied", status="403 Forbidden")
    x.read(digest=False)


def upload(x):
    x.read(digest=False)
    x.answer(f"{x.size}")


def early(x):
    x.read()
    x.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
    x.answer("after the hint")


def events(x):
    """Server-sent events: each one is written only after the caller, having read the one before, asked /tick for it."""
    x.keep = False
    x.answer(fields=[("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")], length=False)
    for number in range(int(x.query.get("n", 5))):
        if not TICKETS[x.query["id"]].acquire(timeout=30):
            return
        x.send(f"id: {number}\nevent: tick\ndata: {number} squared is {number * number}\n\n")


def tick(x):
    TICKETS[x.query["id"]].release()
    x.answer("ok")


def cut(x):
    """Promises 100 bytes, sends 10 and closes."""
    x.keep = False
    x.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\n0123456789")


def where(x):
    x.answer(x.here)


PATHS = {"/echo": echo, "/hello": hello, "/chunked": chunked, "/trailers": trailers, "/until-close": until_close,
         "/expect/refuse": refuse, "/expect/never": never, "/deny": deny, "/upload": upload, "/early": early,
         "/events": events, "/tick": tick, "/cut": cut, "/where": where}


def serve(connection, here):
    stream = connection.makefile("rwb", buffering=1 << 18)
    try:
        while True:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = stream.readline(1 << 17)
                if not line:
                    return
                head += line
            x = Exchange(stream, head.rstrip(b"\r\n"))
            x.here = here
            if x.get("expect") and not x.path.startswith("/expect/"):
                x.send("HTTP/1.1 100 Continue\r\n\r\n")
            (status if x.path.startswith("/status/") else PATHS.get(x.path, echo))(x)
            if not x.keep:
                return
    except (OSError, Gone, ValueError):
        pass
    finally:
        try:
            stream.flush()
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        connection.close()


def accept(listener, here):
    while True:
        connection, _ = listener.accept()
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection, here), daemon=True).start()


def main():
    port, *binds = sys.argv[1:]
    for bind in ["127.0.0.1", *binds] if not binds or binds[0].startswith("unix:") else binds:
        if bind.startswith("unix:"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(bind.removeprefix("unix:"))
            os.chmod(bind.removeprefix("unix:"), 0o777)
            listener.listen(128)
        else:
            listener = socket.create_server((bind, int(port)), backlog=512)
        threading.Thread(target=accept, args=(listener, bind)).start()


if __name__ == "__main__":
    main()

"""Bare sockets for the areas that send what no client library would: a counting backend and a patient reader."""

import socket
import threading
import time

import h11

from lab import LOOPBACK


class Backend(threading.Thread):
    """Keeps every byte that reaches it and, by h11's strict parser, every whole request; answers those with 200."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server((LOOPBACK, 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.lock, self.received, self.requests = threading.Lock(), bytearray(), []
        self.hold = threading.Event()
        self.hold.set()
        self.start()

    def reset(self):
        with self.lock:
            self.received.clear()
            self.requests.clear()

    def run(self):
        while True:
            line, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(line,), daemon=True).start()

    def serve(self, line):
        parser, current, body = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), None, b""
        try:
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    block = line.recv(1 << 16)
                    with self.lock:
                        self.received += block
                    parser.receive_data(block)
                elif isinstance(event, h11.Request):
                    current, body = event, b""
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    with self.lock:
                        self.requests.append((current.method, current.target, list(current.headers.raw_items()), body))
                    if b"held" in current.target:
                        self.hold.wait(30)
                    line.sendall(parser.send(h11.Response(status_code=200, headers=[("content-length", "2")])))
                    line.sendall(parser.send(h11.Data(data=b"ok")) + (parser.send(h11.EndOfMessage()) or b""))
                    if parser.our_state is h11.MUST_CLOSE:
                        return
                    parser.start_next_cycle()
                else:
                    return
        except (h11.RemoteProtocolError, h11.LocalProtocolError, OSError):
            pass
        finally:
            line.close()


def exchange(port, payload, within=8.0, step=None, end=False):
    """Sends `payload`; reads until the other side ends or stands still. Returns (bytes, whether it ended).

    `step` is a pause between single bytes; `end` closes our writing side after the payload.
    """
    with socket.create_connection((LOOPBACK, port), timeout=within) as line:
        out = b""
        try:
            for part in ([payload] if step is None else [payload[n:n + 1] for n in range(len(payload))]):
                line.sendall(part)
                if step:
                    time.sleep(step)
            if end:
                line.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side refused early; what it said is still to be read
        limit = time.monotonic() + within
        while time.monotonic() < limit:
            line.settimeout(max(0.01, limit - time.monotonic()))
            try:
                block = line.recv(1 << 16)
            except TimeoutError:
                return out, False
            except ConnectionError:
                return out, True
            if not block:
                return out, True
            out += block
    return out, False


def status(answer):
    """The status code at the start of an answer, or None."""
    parts = answer.split(b" ", 2)
    return int(parts[1]) if len(parts) > 1 and parts[0].startswith(b"HTTP/1.") and parts[1][:3].isdigit() else None

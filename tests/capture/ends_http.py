"""The HTTP ends of the cases about an app behind the rules: a peer, an app that calls it, and callers of the app.

    peer ADDRESS PORT          answers `by a sidecar` or `directly`, as it was called; says `ready`
    app PORT URL               calls URL for each request and once more when it is asked to end; says `open`, then `last WORD`
    load ADDRESS PORT          for each line that it reads, calls until nobody listens any more; says `ready`, `loaded`, results
"""

import http.client
import http.server
import json
import signal
import socket
import sys
import threading
import time
import urllib.request

CLOCK = 20


class Server(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = False, 128

    def __init__(self, address, port, answer):
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = answer(self.headers).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__((address, port), Handler)


def peer(address, port):
    server = Server(address, int(port), lambda headers: "by a sidecar" if headers.get("x-request-id") else "directly")
    print("ready", flush=True)
    server.serve_forever()


def fetch(url):
    with urllib.request.urlopen(url, timeout=CLOCK) as answer:
        return answer.read().decode()


def app(port, url):
    def answer(_):
        time.sleep(0.01)
        return fetch(url)

    server = Server("127.0.0.1", int(port), answer)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("open", flush=True)
    server.serve_forever()
    # What was begun is ended, then the app says good-bye.
    server.server_close()
    print(f"last {fetch(url)}", flush=True)


class Caller(threading.Thread):
    """Calls one after the other; `keeps` its connection where it may."""

    def __init__(self, address, port, keeps, good):
        super().__init__()
        self.to, self.keeps, self.good, self.lost = (address, port), keeps, good, []

    def run(self):
        connection, reused = None, False
        while True:
            try:
                if connection is None:
                    connection, reused = http.client.HTTPConnection(*self.to, timeout=CLOCK), False
                    connection.connect()
            except ConnectionRefusedError:
                return
            try:
                connection.request("GET", "/", headers={} if self.keeps else {"connection": "close"})
                answer = connection.getresponse()
                text = answer.read().decode()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                connection.close()
                connection = None
                # A connection that is let go of between two requests takes none with it (RFC 9112 §9.3.1).
                if not reused:
                    self.lost.append(repr(error))
                continue
            except Exception as error:
                self.lost.append(repr(error))
                return
            if (answer.status, text) == (200, "by a sidecar"):
                self.good.release()
            else:
                self.lost.append(f"{answer.status} {text}")
            reused = self.keeps and not answer.will_close
            if not reused:
                connection.close()
                connection = None


def load(address, port):
    print("ready", flush=True)
    for _ in sys.stdin:
        good = threading.Semaphore(0)
        callers = [Caller(address, int(port), keeps, good) for keeps in (True, True, False, False)]
        for caller in callers:
            caller.start()
        for _ in range(30):
            if not good.acquire(timeout=CLOCK):
                break
        print("loaded", flush=True)
        for caller in callers:
            caller.join()
        print(json.dumps([lost for caller in callers for lost in caller.lost]), flush=True)


if __name__ == "__main__":
    {"peer": peer, "app": app, "load": load}[sys.argv[1]](*sys.argv[2:])

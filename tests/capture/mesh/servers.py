"""The services of the suite, one by its name on the command line: HTTP, SMTP as far as a session needs it, and FTP."""

import http.client
import http.server
import json
import socket
import socketserver
import sys


class Dual(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    # With the default of 5 connections that wait to be accepted a burst is turned away by the system, a second late.
    request_queue_size = 1024

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class App(http.server.BaseHTTPRequestHandler):
    """Says who it is and who asked; /call/HOST:PORT/PATH asks somebody else."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body at once: in two they are a delayed acknowledgement apart
    name = ""

    def do_GET(self):
        if self.path.startswith("/call/"):
            host, path = self.path[len("/call/"):].split("/", 1)
            there = http.client.HTTPConnection(host, timeout=5)
            there.request("GET", "/" + path)
            body = there.getresponse().read()
        else:
            body = json.dumps({"name": self.name, "client": self.client_address[0].removeprefix("::ffff:"), "path": self.path,
                               "from": self.headers.get("x-forwarded-client-cert", "")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def app(name, port, host="::"):
    App.name = name
    Dual.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if ":" not in host:
        Dual.server_bind = http.server.ThreadingHTTPServer.server_bind
    Dual((host, int(port)), App).serve_forever()


class Lines(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class Smtp(socketserver.StreamRequestHandler):
    """Greets its caller by its address, takes a message, and says how much it took."""

    def handle(self):
        say = lambda text: self.wfile.write(text.encode() + b"\r\n")
        say(f"220 mail ready for {self.client_address[0].removeprefix('::ffff:')}")
        data, taken = False, 0
        for line in self.rfile:
            word = line.strip().upper()[:4]
            if data:
                data = line != b".\r\n"
                taken += len(line)
                if not data:
                    say(f"250 took {taken}")
            elif word == b"QUIT":
                say("221 bye")
                return
            elif word == b"DATA":
                data = True
                say("354 go on")
            else:
                say("250 fine")


def ftp(folder, first, last):
    """Real FTP, by pyftpdlib: who comes without a name may read and write the folder, by the passive ports from `first` to `last`."""
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import FTPServer

    FTPHandler.authorizer = DummyAuthorizer()
    FTPHandler.authorizer.add_anonymous(folder, perm="elradfmw")
    FTPHandler.passive_ports = range(int(first), int(last) + 1)
    FTPServer(("0.0.0.0", 21), FTPHandler).serve_forever()


def smtp(port):
    Lines(("::", int(port)), Smtp).serve_forever()


if __name__ == "__main__":
    {"app": app, "ftp": ftp, "smtp": smtp}[sys.argv[1]](*sys.argv[2:])

"""An echo server by the `websockets` library, with paths that close, refuse and choose: ws_echo.py PORT."""

import http
import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve


def echo(connection):
    path = connection.request.path
    if path.startswith("/close/"):
        connection.recv()
        connection.close(int(path.rsplit("/", 1)[1]), "as asked")
        return
    if path == "/seen":
        # tells how the last caller of /told went
        connection.send(LAST[-1] if LAST else "nobody")
        return
    try:
        for message in connection:
            if path == "/frames":
                connection.send([message[:3], message[3:6], message[6:]])
            else:
                connection.send(message)
    except ConnectionClosed:
        pass
    if path == "/told":
        LAST.append(f"{connection.protocol.close_code} {connection.protocol.close_reason}")


LAST = []


def gate(connection, request):
    if request.path == "/refuse":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not here\n")
    return None


def choose(connection, offered):
    return next((name for name in offered if name in ("chat.v2", "chat.v1")), None)


if __name__ == "__main__":
    with serve(echo, "127.0.0.1", int(sys.argv[1]), process_request=gate, subprotocols=["chat.v2", "chat.v1"],
               select_subprotocol=choose, max_size=1 << 24) as server:
        server.serve_forever()

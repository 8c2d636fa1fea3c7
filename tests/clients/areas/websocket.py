"""WebSockets by the `websockets` library and by Node's `ws`: HTTP/1 upgrade and HTTP/2 extended CONNECT."""

import json
import socket
import subprocess

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from cases import Area
from lab import HERE, find, wait_for

area = Area("websocket")


@area.setup
def world(lab):
    echo = lab.serve("ws_echo.py")
    # HTTP/2 at the caller's sidecar, HTTP/1 from there on
    down = lab.mesh("down", echo, peer={"protocol": "http1"})
    return {"echo": lab.mesh("echo", echo), "down": down, "node": lab.mesh("node", lab.serve("ws_node.mjs")),
            "both": lab.mesh("both", lab.serve("both.mjs"))}


def ws(at, path="/echo", **options):
    return connect(f"ws://{at.name}{path}", sock=socket.create_connection((at.host, at.port), timeout=20),
                   open_timeout=20, max_size=1 << 24, **options)


@area.case("echo")
def echo(at):
    with ws(at) as line:
        seen = [line.response.status_code, line.response.headers["upgrade"].lower()]
        for message in ("text", b"\x00\xff", "", "x" * 70000, "ünïcode €"):
            line.send(message)
            assert line.recv(timeout=20) == message
        return seen, [str(e) for e in line.protocol.extensions]


@area.case("echo")
def one_mebibyte_both_ways(at):
    with ws(at, compression=None) as line:
        for _ in range(8):
            line.send(b"m" * (1 << 20))
            assert line.recv(timeout=20) == b"m" * (1 << 20)


@area.case("echo")
def fragments(at):
    with ws(at, "/frames", compression=None) as line:
        line.send(["frag", "men", "ted"])
        return list(line.recv_streaming())


@area.case("echo")
def ping_and_pong(at):
    with ws(at) as line:
        return [line.ping(str(n)).wait(timeout=20) for n in range(5)]


@area.case("echo")
def many_messages_in_flight(at):
    with ws(at) as line:
        for number in range(500):
            line.send(str(number))
        assert [line.recv(timeout=20) for _ in range(500)] == [str(n) for n in range(500)]


@area.case("echo")
def the_server_closes_with_a_code(at):
    seen = []
    for code in (1000, 1001, 1011, 4002):
        with ws(at, f"/close/{code}") as line:
            line.send("go")
            try:
                line.recv(timeout=20)
            except ConnectionClosed as end:
                seen.append((end.rcvd.code, end.rcvd.reason, end.rcvd_then_sent))
    assert seen[3][:2] == (4002, "as asked"), seen
    return seen


@area.case("echo")
def the_client_closes_with_a_code(at):
    code = 4003 + at.direct  # each way has its own: no answer of the other run can stand in
    with ws(at, "/told") as line:
        line.send("hello")
        line.close(code, "enough")

    def told():
        with ws(at, "/seen") as line:
            return line.recv(timeout=20) == f"{code} enough"
    wait_for(told, "the server saw the code and the reason")


@area.case("echo")
def subprotocol(at):
    with ws(at, subprotocols=["chat.v9", "chat.v1"], additional_headers={"X-Extra": "1"}) as line:
        return line.subprotocol


@area.case("echo")
def refused_upgrade(at):
    try:
        with ws(at, "/refuse"):
            raise AssertionError("the upgrade went through")
    except InvalidStatus as refusal:
        return refusal.response.status_code, refusal.response.body


def node(at, scenario):
    done = subprocess.run([find("node"), HERE / "callers" / "ws.mjs", at.address, at.name, scenario],
                          capture_output=True, text=True, timeout=40)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@area.case("node")
def node_ws(at):
    seen = node(at, "echo")
    assert seen[-1] == ["close", 4001, "done here"], seen
    return seen


@area.case("node")
def node_ws_terminated_by_the_server(at):
    seen = node(at, "terminate")
    assert seen[-1] == ["close", 1006], seen
    return seen


@area.case("both", only="through")
def extended_connect_is_offered_and_carried(at):
    # the app is Node's HTTP/2 server that sends the stream's bytes back: masked frames come back masked and are an
    # error of ws, so only the opening is looked at here; the next case has a real server behind it
    seen = node(at, "extended")
    assert seen and seen[0][0] == "open", seen


@area.case("down", only="through")
def extended_connect_to_an_http_1_server(at):
    seen = node(at, "extended")
    assert seen[0][0] == "open" and seen[-1] == ["close", 4001, "done here"], seen

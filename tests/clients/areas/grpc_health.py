"""grpcio's answers to health checks: who is not serving is out of the choice until it serves again."""

import collections
import json

import grpc

from cases import Area
from lab import LOOPBACK, wait_for

area = Area("grpc-health")


@area.setup
def world(lab):
    area.ports = [lab.serve("grpc_health.py", name=f"health-{n}") for n in (1, 2)]
    if not lab.direct:
        area.sidecar = lab.sidecar("health-out", {
            "outbound": {"listen": f"{LOOPBACK}:{lab.port()}"},
            "peers": {"shop": {
                "static": [f"{LOOPBACK}:{port}" for port in area.ports], "protocol": "http2",
                "health": {"grpc": "shop.Cart", "every": "200ms", "timeout": "200ms", "unhealthy": 2, "healthy": 2}}}})
    here = collections.namedtuple("World", "direct through")
    place = collections.namedtuple("Place", "direct")
    return {"shop": here(place(True), place(False))}


def say(port, what):
    with grpc.insecure_channel(f"{LOOPBACK}:{port}", options=[("grpc.enable_http_proxy", 0)]) as opened:
        opened.unary_unary("/t.Health/Set")(what.encode(), timeout=10)


def told():
    """Why each endpoint is unhealthy; None where it is not."""
    status, body = area.sidecar.get("/state")
    assert status == 200, body
    peer = next(peer for peer in json.loads(body)["peers"] if peer["name"] == "shop")
    return [endpoint.get("unhealthy", {}).get("why") for endpoint in peer["endpoints"]]


@area.case("shop", only="through")
def a_server_that_does_not_serve_is_out_until_it_does(at):
    assert told() == [None, None]
    for answer, why in (("NOT_SERVING", "NOT_SERVING"), ("UNKNOWN", "UNKNOWN"), ("UNIMPLEMENTED", "grpc-status 12"),
                        ("UNAVAILABLE", "grpc-status 14")):
        say(area.ports[0], answer)
        wait_for(lambda: told() == [f"grpc.health.v1: {why}", None], f"{answer} is told ({told()})")
        say(area.ports[0], "SERVING")
        wait_for(lambda: told() == [None, None], f"it serves again ({told()})")


@area.case("shop", only="through")
def all_checks_of_an_endpoint_share_a_connection(at):
    before = json.loads(area.sidecar.get("/state")[1])
    peer = next(peer for peer in before["peers"] if peer["name"] == "shop")
    assert [endpoint["pool"]["http2"] for endpoint in peer["endpoints"]] == [1, 1], peer

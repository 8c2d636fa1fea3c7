"""curl through the outbound door as an HTTP forward proxy, and through Unix sockets on both sides."""

import json

from areas.curl import curl, end_to_end
from areas.tls import certificate
from cases import Area
from lab import LOOPBACK

area = Area("forward")


@area.setup
def world(lab):
    web = lab.serve("web.py")
    sock, door = lab.path("app.sock"), lab.path("door.sock")
    unix = lab.serve("web.py", f"unix:{sock}", name="unix-app")
    lab.cert, lab.key = certificate(lab, "secure.test")
    return {
        "web": lab.mesh("web", web),
        "unix": lab.mesh("unix", unix, app_at=f"unix:{sock}", outbound={"listen": f"unix:{door}"}, unix_app=str(sock)),
        "denied": lab.mesh("denied", web, outbound={"otherwise": "deny"}),
    }


def proxied(at, *options):
    """The options that send curl through the sidecar as a forward proxy; none when direct."""
    return ["-x", f"http://{at.address}", *options] if not at.direct else []


@area.case("web")
def absolute_form(at):
    seen = json.loads(curl(at, "/echo?q=1", *proxied(at), "-H", "X-Case: Kept", "-H", "Via:")[1])
    assert seen["target"] == "/echo?q=1", seen
    return seen["target"], [f for f in end_to_end(seen["fields"]) if f[0].lower() not in ("via", "proxy-connection")]


@area.case("web")
def connect_to_a_peer(at):
    # the name is a peer's: the tunnel leads through its sidecar
    _, out = curl(at, "/hello", *proxied(at, "-p"), "-o", "/dev/null", "-w", "%{http_code} %{size_download}")
    assert out == "200 100", out
    return out


@area.case("web", only="through")
def unlisted_address(at):
    app = f"http://{at.mesh.direct.address}/hello"
    for how, wanted in (((), "200 000"), (("-p",), "200 200")):
        _, out = curl(at, app, *proxied(at, *how), "-o", "/dev/null", "-w", "%{http_code} %{http_connect}")
        assert out == wanted, (how, out)


@area.case("denied", only="through")
def otherwise_deny_refuses_and_says_why(at):
    app = f"http://{at.mesh.direct.address}/hello"
    for how in ((), ("-p",)):
        code, out = curl(at, app, *proxied(at, *how), "-D", "-", check=False)
        assert code in (0, 56) and " 200" not in out.split("\r\n")[0] and "no_route" in out, (how, code, out)


@area.case("web", only="through")
def own_ports_are_refused(at):
    for port in (at.port, at.mesh.caller.admin):
        for how in ((), ("-p",)):
            _, out = curl(at, f"http://{LOOPBACK}:{port}/state", *proxied(at, *how), "-D", "-", check=False)
            assert " 200" not in out.split("\r\n")[0] and "address_refused" in out, (port, how, out)


@area.case("unix")
def unix_sockets_at_both_ends(at):
    _, out = curl(at, "/echo", "--unix-socket", at.unix, "-d", "body")
    seen = json.loads(out)
    return seen["target"], seen["size"], end_to_end(seen["fields"])

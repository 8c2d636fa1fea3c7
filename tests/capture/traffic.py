"""What goes where, over IPv4 and IPv6: each end says what it sees."""

import json
import pathlib

from lab import APP, BEYOND, OTHER, OUTSIDE, POD, SIDECAR, has, out, same

FILE = """
service: checkout
inbound: {{ app: "127.0.0.1:8080" }}
redirect:
  mode: {mode}
  outbound: {{ except: {{ ports: [81], networks: [10.8.0.0/24, "fd08::/64"], uids: [1400] }} }}
  inbound: {{ except: {{ ports: [22] }} }}
  dns: {dns}
dns: {{ listen: ["127.0.0.1:15053", "[::1]:15053"] }}
"""


def setting(lab, mode="redirect", dns="off", apply=True):
    """The app at 8080 and 22, doors that go on to where the caller was going, and servers elsewhere."""
    file = lab.file(FILE.format(mode=mode, dns=dns))
    rights = ("net_raw",) if mode == "tproxy" else ()
    transparent = ("--transparent",) if mode == "tproxy" else ()
    lab.serve("pod", APP, "app", 8080, 22)
    lab.serve("pod", SIDECAR, "outbound", 15001, flags=("--onward",))
    lab.serve("pod", SIDECAR, "inbound", 15006, capabilities=rights, flags=("--onward", "--to-app", *transparent))
    lab.serve("outside", 0, "outside", 80, 81, 53, 8080, flags=("--udp",))
    lab.serve("beyond", 0, "beyond", 80, 81)
    if apply:
        lab.redirect("apply", file=file)
    return file


def by(said):
    """Who took a connection, then who took the one that it led to, and so on."""
    names = []
    while said:
        names.append(said["who"])
        said = said.get("onward")
    return " > ".join(names)


def check_outbound(lab):
    for ip, far, own in zip(OUTSIDE, BEYOND, POD):
        loopback = "::1" if ":" in ip else "127.0.0.1"
        for uid, address, port, meant in (
            (APP, ip, 80, "outbound > outside"),
            (0, ip, 80, "outbound > outside"),
            (SIDECAR, ip, 80, "outside"),
            (OTHER, ip, 80, "outside"),
            (APP, ip, 81, "outside"),
            (APP, far, 80, "beyond"),
            (APP, loopback, 8080, "app"),
            (SIDECAR, loopback, 8080, "app"),
            (APP, loopback, 15001, "outbound"),
            # The service calls itself by the address of its pod.
            (APP, own, 8080, "outbound > inbound > app"),
            (SIDECAR, own, 8080, "inbound > app"),
            (OTHER, own, 8080, "app"),
        ):
            said = lab.dial("pod", uid, address, port, "--timeout", 15)
            if port == 15001:
                # Nothing was captured: the door itself was called.
                same(said["who"], "outbound", f"{uid} to {address}")
                continue
            same(by(said), meant, f"user {uid} to {address} port {port}")
            if said["who"] == "outbound":
                same(said["original"], [address, port], "where it was going")
                same(said["here"], [loopback, 15001], "where it came")
        # In the own calls, the inbound door learns the address that was called, too.
        same(lab.dial("pod", APP, own, 8080, "--timeout", 15)["onward"]["original"], [own, 8080], "the own address")


def check_inbound(lab, transparent):
    for ip, outside, beyond in zip(POD, OUTSIDE, BEYOND):
        said = lab.dial("outside", APP, ip, 8080, "--bytes", 2_000_000)
        same(by(said), "inbound > app", f"from outside to {ip}")
        same((said["original"], said["peer"][0]), ([ip, 8080], outside), "what the door sees")
        # Whom the app sees: the sidecar, at an address that is no loopback one, or the caller.
        same(said["onward"]["peer"][0], outside if transparent else ip, "what the app sees")
        same(said["onward"]["here"], [ip, 8080], "where the app was called")
        same(by(lab.dial("outside", APP, ip, 22)), "app", "an excepted port")
        same(lab.dial("outside", APP, ip, 15006)["who"], "inbound", "the door's own port")
        # The same from the other side, and what only passes through.
        same(by(lab.dial("beyond", APP, ip, 8080)), "inbound > app", f"from beyond to {ip}")
        same(by(lab.dial("beyond", APP, outside, 80)), "outside", "what passes through")
        same(by(lab.dial("outside", APP, beyond, 80)), "beyond", "what passes through")


def link_local_addresses_are_left_alone(lab, _):
    """A socket that calls one is bound to its interface: sent to a door on loopback it would reach nobody."""
    setting(lab, dns="all")
    lab.serve("pod", SIDECAR, "dns", 15053, flags=("--udp", "--loopback"))
    for where, address, device in (([], "fe80::9:1", "to-outside"), (lab.prefix["outside"], "fe80::9:2", "outside-eth0")):
        out(*where, "ip", "addr", "add", f"{address}/64", "dev", device, "nodad")
    for kind, port in (("dial", 80), ("dial", 53), ("ask", 53)):
        same(lab.dial("pod", APP, "fe80::9:2%to-outside", port, kind=kind)["who"], "outside", f"{kind} {port}")
    # From outside it is an address as any other.
    same(by(lab.dial("outside", APP, "fe80::9:1%outside-eth0", 15006)), "inbound", "a door of its own accord")


def redirected_traffic(lab, _):
    setting(lab)
    check_outbound(lab)
    check_inbound(lab, transparent=False)


def traffic_by_the_iptables_script(lab, _):
    for mode in ("redirect", "tproxy"):
        if mode == "redirect":
            file = setting(lab, apply=False)
        else:
            # The doors of the first turn end; the transparent ones take their ports.
            lab.close_servers()
            file = setting(lab, mode, apply=False)
        out("sh", "-e", input=lab.redirect("script", "--iptables", file=file))
        check_outbound(lab)
        check_inbound(lab, transparent=mode == "tproxy")
        out("sh", "-e", input=lab.redirect("script", "--iptables", "--remove", file=file))


def transparent_traffic(lab, _):
    for name in ("all", "lo", "default"):
        pathlib.Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("1")
    setting(lab, mode="tproxy")
    check_outbound(lab)
    check_inbound(lab, transparent=True)
    # The same caller from the same port, while the door still remembers the connection before: not past the door.
    for ip in POD:
        for turn in range(5):
            same(by(lab.dial("outside", APP, ip, 8080, "--own-port", 40000)), "inbound > app", f"turn {turn}")
    # Answers whose addresses somebody else's rule has yet to translate back are none of the door's business.
    out("nft", "-f", "-", input="table ip nat { chain out { type nat hook output priority -100; "
        f"ip daddr 10.7.7.7 dnat to {OUTSIDE[0]}; }}; }}")
    same(by(lab.dial("pod", SIDECAR, "10.7.7.7", 80)), "outside", "by way of an address that is translated")
    same(by(lab.dial("pod", APP, "10.7.7.7", 80)), "outbound > outside", "what is dialled counts, not what it becomes")


def connections_from_before_go_on(lab, _):
    for mode in ("redirect", "tproxy"):
        lab.close_servers()
        file = setting(lab, mode, apply=False)
        held = []
        for pod, outside in zip(POD, OUTSIDE):
            held.append((lab.hold("pod", APP, outside, 80, "--bytes", 100_000), "outside"))
            held.append((lab.hold("outside", APP, pod, 8080, "--bytes", 100_000), "app"))
        lab.redirect("apply", file=file)
        # And those that were captured, when the rules come anew.
        for pod, outside in zip(POD, OUTSIDE):
            held.append((lab.hold("pod", APP, outside, 80, "--bytes", 100_000), "outbound > outside"))
            held.append((lab.hold("outside", APP, pod, 8080, "--bytes", 100_000), "inbound > app"))
        lab.redirect("apply", file=file)
        for child, who in held:
            said, _ = child.communicate("go on\n", timeout=20)
            same(by(json.loads(said)), who, f"{mode}: a connection from before")
        lab.redirect("remove")


def questions_to_name_servers(lab, _):
    def asked(uid, address, kind):
        return lab.dial("pod", uid, address, 53, "--timeout", 3, kind=kind)["who"]

    setting(lab, dns="all")
    lab.serve("pod", SIDECAR, "dns", 15053, flags=("--udp", "--loopback"))
    lab.serve("pod", APP, "local server", 53, flags=("--udp", "--loopback"))
    for ip in OUTSIDE:
        loopback = "::1" if ":" in ip else "127.0.0.1"
        for kind in ("ask", "dial"):
            same(asked(APP, ip, kind), "dns", f"{kind} {ip}")
            same(asked(APP, loopback, kind), "dns", f"{kind} {loopback}")
            same(asked(SIDECAR, ip, kind), "outside", f"the sidecar: {kind} {ip}")
            same(asked(SIDECAR, loopback, kind), "local server", f"the sidecar: {kind} {loopback}")
            same(asked(OTHER, ip, kind), "outside", f"an excepted user: {kind} {ip}")
        # Other datagrams are none of our business.
        same(lab.dial("pod", APP, ip, 80, "--timeout", 3, kind="ask")["who"], "outside", "another datagram")
    # Only the servers that are listed.
    lab.redirect("apply", file=lab.file(FILE.format(mode="redirect", dns="[127.0.0.1, '::1']")))
    for ip, loopback in zip(OUTSIDE, ("127.0.0.1", "::1")):
        same(asked(APP, loopback, "ask"), "dns", loopback)
        same(asked(APP, ip, "ask"), "outside", ip)
        same(asked(APP, ip, "dial"), "outbound", ip)


def the_test_says_what_becomes_of_a_connection(lab, _):
    file = lab.file(FILE.format(mode="redirect", dns="off"))
    user = lab.as_user(APP)

    def tried(code, *words, uid=user, more=()):
        has(lab.redirect("test", "--timeout", "1s", *more, file=file, code=code, prefix=uid), *words)

    tried(1, "IPv4: a connection to 192.0.2.1:80 was not captured", "IPv6", "run `outrigger redirect apply`")
    lab.redirect("apply", file=file)
    tried(0, "192.0.2.1:80 was captured: it arrived at 127.0.0.1:15001", "[2001:db8::1]:80 was captured")
    tried(1, "user 1337 (group 1337) is one whose connections are left alone", uid=lab.as_user(SIDECAR))
    tried(1, "user 1400", uid=lab.as_user(OTHER))
    tried(1, "10.8.0.9:80 was", more=("--to", "10.8.0.9:80"))
    door = lab.serve("pod", SIDECAR, "outbound", 15001)
    tried(0, "arrived at the sidecar that listens at port 15001")
    door.kill()
    door.wait()
    # Somebody else's rule comes first.
    out("nft", "-f", "-", input="table inet other { chain out { type nat hook output priority -150; "
        "meta l4proto tcp tcp dport 80 redirect to :9999; }; }")
    tried(1, "was refused")
    out("nft", "delete", "table", "inet", "other")
    out("ip", "route", "del", "default")
    out("ip", "-6", "route", "del", "default")
    tried(1, "has no route to begin with")


CASES = (redirected_traffic, link_local_addresses_are_left_alone, transparent_traffic, traffic_by_the_iptables_script,
         connections_from_before_go_on, questions_to_name_servers, the_test_says_what_becomes_of_a_connection)

"""Nobody gets past the doors: what was to be captured and could not be goes nowhere, by whatever trick or failure."""

import itertools
import pathlib
import sys

import behind
import behind_edges
from lab import APP, ENDS, OUTSIDE, POD, SIDECAR, out, same
from traffic import by, setting

# What is dropped is waited for.
SOON = ("--timeout", 2)
PORTS = itertools.count(41000)


def forged(lab, where, address, port, own_port, *more):
    """The kernel notes a connection that nobody opened, and that no rule for new ones has seen."""
    out(*lab.prefix[where], sys.executable, ENDS, "forge", address, port, "--own-port", own_port, *more)


def closed(said, what):
    if not said.startswith("nobody"):
        raise AssertionError(f"{what}: {said}")


def rules(lab, mode):
    """Each way of setting rules; they are in force, with the doors, while the caller looks."""
    for by_script in (False, True):
        lab.close_servers()
        file = setting(lab, mode, apply=not by_script)
        if by_script:
            out("sh", "-e", input=lab.redirect("script", "--iptables", file=file))
        yield f"{mode} by {'iptables' if by_script else 'apply'}"
        if by_script:
            out("sh", "-e", input=lab.redirect("script", "--iptables", "--remove", file=file))
        else:
            lab.redirect("remove")


def forged_packets_lead_past_no_door(lab, _):
    for mode in ("redirect", "tproxy"):
        for how in rules(lab, mode):
            for ip, outside in zip(POD, OUTSIDE):
                # Who calls: the packet is of the connection that is opened afterwards.
                port = next(PORTS)
                forged(lab, "outside", ip, 8080, port)
                said = by(lab.dial("outside", APP, ip, 8080, "--own-port", port, *SOON))
                if mode == "redirect":
                    closed(said, f"{how}: from {outside} to {ip}")
                else:
                    same(said, "inbound > app", f"{how}: from {outside} to {ip}")
                # Who is called: the packet is an answer to a connection that the app has not opened yet.
                port = next(PORTS)
                forged(lab, "outside", ip, port, 80)
                said = by(lab.dial("pod", APP, outside, 80, "--own-port", port, *SOON))
                closed(said, f"{how}: from the app to {outside}")
                # What is left alone stays so, and others are captured as ever.
                for where, uid, address, to, meant in (("outside", APP, ip, 22, "app"), ("pod", SIDECAR, outside, 80, "outside"),
                                                       ("pod", APP, outside, 81, "outside")):
                    if how == "tproxy by iptables" and where == "pod":
                        # Its TPROXY drops what is of no listener's; nftables' lets it pass.
                        continue
                    port = next(PORTS)
                    forged(lab, "outside", ip, *((to, port) if where == "outside" else (port, to)))
                    said = by(lab.dial(where, uid, address, to, "--own-port", port))
                    same(said, meant, f"{how}: user {uid} to {address} port {to}")
                same(by(lab.dial("outside", APP, ip, 8080)), "inbound > app", how)
                same(by(lab.dial("pod", APP, outside, 80)), "outbound > outside", how)


def what_a_neighbour_forges_both_ways_leads_past_no_door(lab, _):
    """Who sends the answer as well has the kernel take the connection for one that both ends have spoken on."""
    link = f"outside-eth0/{out('ip', '-br', 'link', 'show', 'to-outside').split()[2]}"
    known = pathlib.Path("/proc/self/net/nf_conntrack")
    for how in rules(lab, "redirect"):
        for ip, outside in zip(POD, OUTSIDE):
            called, calling = next(PORTS), next(PORTS)
            forged(lab, "outside", ip, 8080, called, "--link", link)
            forged(lab, "outside", ip, calling, 80, "--link", link)
            if known.exists():
                listed = [line for line in known.read_text().splitlines() if f"port={called} " in line or f"port={calling} " in line]
                same([len(listed), sum("[ASSURED]" in line for line in listed)], [2, 2], f"{how}: {listed}")
            said = by(lab.dial("outside", APP, ip, 8080, "--own-port", called, *SOON))
            closed(said, f"{how}: from {outside} to {ip}")
            said = by(lab.dial("pod", APP, outside, 80, "--own-port", calling, *SOON))
            closed(said, f"{how}: from the app to {outside}")


def rules_that_hide_connections_lead_past_no_door(lab, _):
    """The kernel has no state of such connections, and asks no rule of translation about them."""
    for mode in ("redirect", "tproxy"):
        for how in rules(lab, mode):
            out("nft", "-f", "-", input="table inet hidden {\n"
                "chain in { type filter hook prerouting priority -300; tcp dport { 22, 8080 } notrack; }\n"
                "chain out { type filter hook output priority -300; tcp dport { 80, 81 } notrack; tcp sport 22 notrack; }\n}\n")
            for ip, outside in zip(POD, OUTSIDE):
                said = by(lab.dial("outside", APP, ip, 8080, *SOON))
                if said == "app":
                    raise AssertionError(f"{how}: to {ip}: {said}")
                closed(by(lab.dial("pod", APP, outside, 80, *SOON)), f"{how}: to {outside}")
                same(by(lab.dial("outside", APP, ip, 22)), "app", how)
                if how != "tproxy by iptables":
                    same(by(lab.dial("pod", APP, outside, 81)), "outside", how)
                    same(by(lab.dial("pod", SIDECAR, outside, 80)), "outside", how)
            out("nft", "delete", "table", "inet", "hidden")


def without_a_door_nobody_comes_in(lab, _):
    for mode in ("redirect", "tproxy"):
        for how in rules(lab, mode):
            door = lab.children[-3]
            door.kill()
            door.wait()
            for ip in POD:
                closed(by(lab.dial("outside", APP, ip, 8080, *SOON)), f"{how}: {ip} without a door")
                same(by(lab.dial("outside", APP, ip, 22)), "app", f"{how}: an excepted port")
            flags = ("--onward", "--to-app", "--v4", *(("--transparent",) if mode == "tproxy" else ()))
            rights = ("net_raw",) if mode == "tproxy" else ()
            lab.serve("pod", SIDECAR, "inbound", 15006, capabilities=rights, flags=flags)
            same(by(lab.dial("outside", APP, POD[0], 8080)), "inbound > app", how)
            closed(by(lab.dial("outside", APP, POD[1], 8080, *SOON)), f"{how}: over IPv6 with a door for IPv4")


def nobody_gets_past_the_rules_of_one_app(lab, _):
    """An app that listens at an address of its pod, as many do, with rules for it alone."""
    behind.prepare(lab)
    lab.serve("outside", 0, "outside", 80)
    serve = f"{behind.python(lab)} {ENDS} serve app 9000 22"
    for name in ("user", "group"):
        way = behind.ways(lab)[name]
        file = way.file
        way.file = lambda lab, file=file: lab.file(file(lab).read_text().replace("127.0.0.1:9000", f"{POD[0]}:9000"))
        with behind_edges.Running(lab, way, "sh", "-c", f"echo open; exec {serve}") as running:
            up = lambda: greeting(lab, 22, next(PORTS)) == ("app", OUTSIDE[0])
            behind.until(up, f"{name}: the app answers at a port that is not captured")
            port = next(PORTS)
            forged(lab, "outside", POD[0], 9000, port)
            closed(greeting(lab, 9000, port)[0], f"{name}: {running.said()}")
            same(greeting(lab, 9000, next(PORTS)), ("app", POD[0]), f"{name}: by way of the sidecar")


def greeting(lab, port, own_port):
    """Who answers, and whom it sees."""
    said = lab.dial("outside", APP, POD[0], port, "--own-port", own_port)
    return said["who"], said.get("peer", [None])[0]


CASES = (forged_packets_lead_past_no_door, what_a_neighbour_forges_both_ways_leads_past_no_door,
         rules_that_hide_connections_lead_past_no_door, without_a_door_nobody_comes_in, nobody_gets_past_the_rules_of_one_app)

"""Where rules cannot be set, or must not be: a line that says what to do, and nothing changed."""

import pathlib
import subprocess

from lab import APP, HERE, Skip, find, has, out, same, standing

PLAIN, TPROXY = (HERE / "golden" / f"{name}.yaml" for name in ("plain", "tproxy"))


def refused(lab, command, *words, **more):
    """It fails with one line that has these words, and changes nothing."""
    before = standing()
    said = lab.redirect(command, code=1, **more)
    has(said, *words)
    if len(said.strip().splitlines()) != 1:
        raise AssertionError(f"more than a line: {said}")
    same(standing(), before, said)


def rules_of_others_are_refused(lab, _):
    foreign = {
        "nftables": ("nft -f -", "table inet mesh { chain out { type nat hook output priority -100; "
                     "meta l4proto tcp redirect to :4140; }; }"),
        "Istio": ("iptables-restore", "*nat\n:ISTIO_OUTPUT -\n:ISTIO_REDIRECT -\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n"
                  "-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"),
        "Linkerd": ("ip6tables-restore", "*nat\n:PROXY_INIT_REDIRECT -\n-A PREROUTING -j PROXY_INIT_REDIRECT\n"
                    "-A PROXY_INIT_REDIRECT -p tcp -j REDIRECT --to-ports 4143\nCOMMIT\n"),
    }
    for name, (program, text) in foreign.items():
        out(*program.split(), input=text)
        refused(lab, "apply", "redirected here already", "--beside", "mesh" if name == "nftables" else f"{name}'s",
                file=PLAIN)
        before = standing()
        lab.redirect("apply", "--beside", file=PLAIN)
        lab.redirect("remove")
        same(standing(), before, name)
        out("nft", "flush", "ruleset")
    # What cannot be seen is at least told.
    if legacy := find("iptables-legacy"):
        out(legacy, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "9", "-j", "REDIRECT", "--to-ports", "9")
        has(lab.redirect("apply", file=PLAIN), "warning: iptables-legacy is in use")


def a_table_of_our_name_may_be_somebody_elses(lab, _):
    for text in ("table inet outrigger { chain mine { tcp dport 1 accept; }; chain outrigger-outbound { }; }",
                 "table inet outrigger { }"):
        out("nft", "-f", "-", input=text)
        refused(lab, "apply", "`inet outrigger` was not made by `outrigger redirect`", file=PLAIN)
        refused(lab, "remove", "`inet outrigger` was not made by `outrigger redirect`")
        refused(lab, "show", "`inet outrigger` was not made by `outrigger redirect`")
        out("nft", "delete", "table", "inet", "outrigger")
    # A version that has other chains and other rules is known by their names.
    out("nft", "-f", "-", input="table inet outrigger { chain outrigger-later { tcp dport 1 counter accept; }; }")
    has(lab.redirect("show"), "chain outrigger-later has a rule that is not Outrigger's")
    lab.redirect("apply", file=PLAIN)
    lab.redirect("remove")
    same(out("nft", "list", "ruleset"), "", "at the end")


def policy_routing_of_others_is_refused(lab, _):
    for rule in (["fwmark", "1337", "lookup", "9"], ["fwmark", "9", "lookup", "1337"]):
        out("ip", "rule", "add", *rule, "pref", "50")
        refused(lab, "apply", "is somebody else's", "redirect.mark", file=TPROXY)
        out("ip", "rule", "del", *rule, "pref", "50")
    out("ip", "-6", "route", "add", "local", "default", "dev", "lo", "table", "1337")
    refused(lab, "apply", "ip -6 route in table 1337", file=TPROXY)
    lab.redirect("apply", file=PLAIN)


def without_the_capability(lab, _):
    user = lab.as_user(APP)
    refused(lab, "apply", "it needs CAP_NET_ADMIN", "outrigger redirect script", file=PLAIN, prefix=user)
    refused(lab, "remove", "it needs CAP_NET_ADMIN", prefix=user)
    refused(lab, "show", "it needs CAP_NET_ADMIN", prefix=user)
    has(lab.redirect("script", file=PLAIN, prefix=user), "table inet outrigger")
    # Nothing but that capability is needed.
    lab.redirect("apply", file=TPROXY, prefix=lab.as_user(APP, "net_admin"))
    lab.redirect("remove", prefix=lab.as_user(APP, "net_admin"))


def without_nf_tables(lab, _):
    if not find("strace"):
        raise Skip("strace is not installed")

    def without(inject):
        return ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=socket,recvfrom,sendto", "-e", inject]

    parts = ("modprobe nf_tables", "script --iptables")
    # A kernel that has no netfilter by netlink, and one that was built without nf_tables.
    refused(lab, "apply", *parts, file=PLAIN, prefix=without("inject=socket:error=EPROTONOSUPPORT"))
    for command, file in (("apply", PLAIN), ("show", None), ("remove", None)):
        refused(lab, command, *parts, file=file, prefix=without("inject=sendto:error=EINVAL:when=1"))
    # Whatever it lacks, be it seen at the last moment (a module of one expression): the routing set by then goes again.
    for file in (PLAIN, TPROXY):
        for when in range(1, 40):
            before = standing()
            said = lab.redirect("apply", file=file, code=1, prefix=without(f"inject=sendto:error=ENOENT:when={when}"))
            has(said, *parts)
            same(standing(), before, f"{file.name}, message {when}: {said}")
            if "cannot set rules" in said:
                break
        else:
            raise AssertionError("the rules were never sent")


def without_ipv6(lab, _):
    for name in ("all", "default"):
        pathlib.Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    before = standing()
    for file in (PLAIN, TPROXY):
        has(lab.redirect("apply", file=file), "IPv4 alone: IPv6 is off here")
        found = out("nft", "list", "ruleset") + out("ip", "-6", "rule")
        same("ip6" in found or "1337" in found.partition("32766")[0].partition("0:\t")[2], False, found)
        lab.redirect("remove")
        same(standing(), before, file.name)


def on_a_read_only_root(lab, _):
    read_only = ["unshare", "--mount", "sh", "-c",
                 'mount --make-rprivate / && mount -o remount,bind,ro / && exec "$@"', "sh"]
    subprocess.run([*read_only, "sh", "-c", "! touch /read-only 2>/dev/null"], check=True)
    before = standing()
    lab.redirect("apply", file=PLAIN, prefix=read_only)
    has(lab.redirect("show", prefix=read_only), "rules are in force")
    lab.redirect("remove", prefix=read_only)
    same(standing(), before, "at the end")


def with_loopback_down(lab, _):
    out("ip", "link", "set", "lo", "down")
    before = standing()
    refused(lab, "apply", "ip link set lo up", file=TPROXY)
    same(standing(), before, "nothing half done")
    lab.redirect("apply", file=PLAIN)


def a_file_that_is_wrong(lab, _):
    file = lab.file("service: a\nredirect: { mode: tproxi }\n")
    refused(lab, "apply", "redirect.mode", "did you mean `tproxy`", file=file)
    file = lab.file("service: a\nredirect: {}\noutbound: { listen: 'unix:/x.sock' }\n")
    refused(lab, "apply", "lead to no listener here: add `127.0.0.1:15001`", file=file)
    refused(lab, "apply", "cannot be read", file=lab.folder / "none.yaml")
    # Its sidecar would take captured connections for others.
    file = lab.file("service: a\n")
    for command in ("apply", "test"):
        refused(lab, command, "without this section the sidecar does not know captured connections: add `redirect: {}`", file=file)
    has(lab.redirect("script", file=file), "warning", "add `redirect: {}`", "table inet outrigger {")
    # An init step may lack other files that the file names; a user of its own comes from the command line.
    file = lab.file("service: a\nidentity: { certificate: /none, key: /none, roots: /none }\n")
    has(lab.redirect("script", "--uid", "4000", "--gid", "4001", file=file), "skuid 4000", "skgid 4001")


CASES = (rules_of_others_are_refused, a_table_of_our_name_may_be_somebody_elses, policy_routing_of_others_is_refused,
         without_the_capability, without_nf_tables, without_ipv6, on_a_read_only_root, with_loopback_down,
         a_file_that_is_wrong)

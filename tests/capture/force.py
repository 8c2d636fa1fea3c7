"""Rules come into force as a whole and go without a trace."""

import difflib
import pathlib
import random
import subprocess
import time

from lab import HERE, Skip, find, has, out, same, standing

GOLDEN = HERE / "golden"
NAMES = ("plain", "picky", "tproxy")

# What others may have set, Docker's name server in a container among it.
NEIGHBOURS = """
table ip nat {
    chain DOCKER_OUTPUT {
        ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:40000
    }
    chain OUTPUT {
        type nat hook output priority -100; policy accept;
        ip daddr 127.0.0.11 jump DOCKER_OUTPUT
    }
    chain POSTROUTING {
        type nat hook postrouting priority 100; policy accept;
        ip saddr 172.17.0.0/16 masquerade
    }
}
table inet filter {
    chain input {
        type filter hook input priority 0; policy accept;
        tcp dport 9 drop
    }
}
"""


def neighbours():
    out("nft", "-f", "-", input=NEIGHBOURS)
    out("ip", "rule", "add", "fwmark", "7", "lookup", "7", "pref", "77")
    out("ip", "route", "add", "local", "default", "dev", "lo", "table", "7")


def differs(before, after):
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))


def what_is_set_is_what_nft_makes_of_the_script(lab, _):
    for name in NAMES:
        file = GOLDEN / f"{name}.yaml"
        said = lab.redirect("apply", file=file)
        has(said, "rules are in force")
        set_by_us = out("nft", "list", "ruleset")
        shown = lab.redirect("show")
        script = (GOLDEN / f"{name}.nft").read_text()
        table = script[script.index("table inet outrigger {"):]
        has(shown, table, (GOLDEN / f"{name}.words").read_text())
        lab.redirect("apply", file=file)
        same(differs(set_by_us, out("nft", "list", "ruleset")), "", f"{name} applied twice")
        lab.redirect("remove")
        out("nft", "-f", GOLDEN / f"{name}.nft")
        same(differs(set_by_us, out("nft", "list", "ruleset")), "", f"{name} by nft")
        # What nft has set is ours as well.
        lab.redirect("remove")
        same(out("nft", "list", "ruleset"), "", name)


def nothing_stays_behind(lab, _):
    neighbours()
    before = standing()
    has(lab.redirect("show", code=1), "no rules of outrigger's are in force")
    has(lab.redirect("remove"), "there are no rules")
    for name in NAMES:
        lab.redirect("apply", file=GOLDEN / f"{name}.yaml")
        has(lab.redirect("remove"), "the rules are gone")
        same(differs(before, standing()), "", name)
    # From one mode to the other and back, without removing in between.
    plain, tproxy = (GOLDEN / f"{name}.yaml" for name in ("plain", "tproxy"))
    lab.redirect("apply", file=plain)
    alone = standing()
    lab.redirect("apply", file=tproxy)
    lab.redirect("apply", file=plain)
    same(differs(alone, standing()), "", "from tproxy to redirect")
    # Another mark leaves nothing of the first.
    other = lab.file(tproxy.read_text().replace("mark: 1337", "mark: 4242"))
    lab.redirect("apply", file=other)
    once = standing()
    lab.redirect("apply", file=tproxy)
    lab.redirect("apply", file=other)
    same(differs(once, standing()), "", "from one mark to another")
    lab.redirect("remove")
    same(differs(before, standing()), "", "at the end")


def the_iptables_script_does_the_same(lab, _):
    tried = 0
    for kind in ("nft", "legacy"):
        programs = {name: find(f"{name}-{kind}") for name in ("iptables", "ip6tables")}
        if not all(programs.values()):
            continue
        folder = lab.folder / kind
        folder.mkdir()
        for name in ("iptables", "ip6tables"):
            for end in ("", "-restore"):
                (folder / f"{name}{end}").symlink_to(find(f"{name}-{kind}{end}"))
        sh = ["env", f"PATH={folder}:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-e"]
        saved = [[find(f"{name}-{kind}-save"), "-t", table] for name in programs for table in ("nat", "mangle", "filter")]

        def view():
            lines = [line for one in saved for line in out(*one).splitlines()]
            return "\n".join([*(line for line in lines if not line.startswith("#")), out("ip", "rule"), out("ip", "-6", "rule"),
                              out("ip", "route", "show", "table", "all")])

        before = view()
        for name in NAMES:
            script = lab.redirect("script", "--iptables", file=GOLDEN / f"{name}.yaml")
            same(script, (GOLDEN / f"{name}.sh").read_text(), name)
            out(*sh, input=script)
            once = view()
            has(once, "outrigger-outbound")
            if kind == "nft":
                # As netlink sees them; legacy ones nobody sees, and that is told.
                undo = "`outrigger redirect script --iptables --remove -c FILE | sh` takes them away"
                has(lab.redirect("show"), "rules of `outrigger redirect script --iptables` are in force here", undo)
                has(lab.redirect("remove", code=1), undo)
                has(lab.redirect("apply", file=GOLDEN / f"{name}.yaml", code=1), undo, "nothing was changed")
                lab.redirect("apply", "--beside", file=GOLDEN / f"{name}.yaml")
                has(lab.redirect("show"), undo, "rules are in force:", "table inet outrigger {")
                has(lab.redirect("remove", code=1), "the table `inet outrigger` is gone, but", undo)
                same(differs(once, view()), "", f"{kind}: {name} is as it was")
                # What is flushed by hand, or by what others reload, is the first half; the guards drop all that they led to the doors.
                for program in programs.values():
                    out(program, "-t", "nat", "-F")
                if "outrigger-guard-" in once:
                    tables = "`ip filter`, `ip mangle`" if "outrigger-guard-in" in once else "`ip filter`"
                    has(lab.redirect("show"), f"are in force here, in {tables}", undo)
                    has(lab.redirect("remove", code=1), tables, undo)
                    has(lab.redirect("apply", file=GOLDEN / f"{name}.yaml", code=1), tables, undo, "nothing was changed")
                    out(*sh, input=lab.redirect("script", "--iptables", "--remove", file=GOLDEN / f"{name}.yaml"))
                    has(lab.redirect("show", code=1), "no rules of outrigger's are in force here")
                    has(lab.redirect("remove"), "no rules of outrigger's here")
                out(*sh, input=script)
                same(differs(once, view()), "", f"{kind}: {name} after it was flushed")
            else:
                has(lab.redirect("show", code=1), "warning: iptables-legacy is in use")
                has(lab.redirect("remove"), "warning: iptables-legacy is in use")
                out(*sh, input=script)
            out(*sh, input=script)
            same(differs(once, view()), "", f"{kind}: {name} twice")
            out(*sh, input=lab.redirect("script", "--iptables", "--remove", file=GOLDEN / f"{name}.yaml"))
            same(differs(before, view()), "", f"{kind}: {name} removed")
        tried += 1
    if not tried:
        raise Skip("neither iptables-nft nor iptables-legacy is installed")


def killed_at_any_step(lab, _):
    """Killed at each system call by which it talks with the kernel's networking, one after the other."""
    if not find("strace"):
        raise Skip("strace is not installed")
    neighbours()
    before = standing()
    for name in ("plain", "tproxy"):
        file = GOLDEN / f"{name}.yaml"
        lab.redirect("apply", file=file)
        applied = standing()
        lab.redirect("remove")
        for command, start in (("apply", "nothing"), ("apply", "other"), ("remove", "applied")):
            for call in ("sendto", "recvfrom"):
                for when in range(1, 100):
                    if start == "other":
                        lab.redirect("apply", file=GOLDEN / ("plain.yaml" if name == "tproxy" else "tproxy.yaml"))
                    if start == "applied":
                        lab.redirect("apply", file=file)
                    config = ["-c", file] if command == "apply" else []
                    inject = f"inject={call}:signal=KILL:when={when}"
                    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject,
                            lab.binary, "redirect", command, *config]
                    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
                    what = f"{name}: {command} on {start}, killed at {call} {when}"
                    half = out("nft", "list", "ruleset")
                    # The table is whole, or not there.
                    if "table inet outrigger" in half and "outrigger-outbound" not in half:
                        raise AssertionError(f"{what}: {half}")
                    if when % 2:
                        lab.redirect("apply", file=file)
                        same(differs(applied, standing()), "", f"{what}, then applied")
                    lab.redirect("remove")
                    same(differs(before, standing()), "", f"{what}, then removed")
                    if done.returncode == 0:
                        break
                else:
                    raise AssertionError(f"{what}: it was never done")
                if when < 3 and start != "nothing":
                    raise AssertionError(f"{what}: it was not killed at all")


def killed_at_random(lab, chosen):
    """`kill -9` at a random moment of `apply`, then `remove`: all as before, each time."""
    neighbours()
    before = standing()
    draw = random.Random(chosen.seed)
    begin = time.monotonic()
    lab.redirect("apply", file=GOLDEN / "tproxy.yaml")
    took = time.monotonic() - begin
    lab.redirect("remove")
    killed = turn = 0
    while killed < chosen.kills:
        file = GOLDEN / f"{NAMES[turn % len(NAMES)]}.yaml"
        child = subprocess.Popen([lab.binary, "redirect", "apply", "-c", file], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        # The moment is the point here; nothing waits for this pause.
        time.sleep(draw.uniform(0, took))
        child.kill()
        killed += child.wait() != 0
        turn += 1
        lab.redirect("remove")
        same(differs(before, standing()), "", f"seed {chosen.seed}, turn {turn}")
        if turn > 20 * chosen.kills:
            raise AssertionError(f"only {killed} of {turn} were killed before they were done")
    print(f"killed {killed} times before it was done, {turn - killed} times after")


def several_at_once(lab, _):
    """Each of them reads, then changes all at once: whoever was too late has to look again."""
    lab.redirect("apply", file=GOLDEN / "tproxy.yaml")
    meant = standing()
    lab.redirect("remove")
    for _ in range(5):
        argv = [str(lab.binary), "redirect", "apply", "-c", str(GOLDEN / "tproxy.yaml")]
        children = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(6)]
        for child in children:
            said, _ = child.communicate(timeout=30)
            same((child.returncode, "rules are in force" in said), (0, True), said)
        same(differs(meant, standing()), "", "together")
        lab.redirect("remove")


def very_many_rules(lab, _):
    """What is too much for one step is refused, and what is in force stays."""
    def many(count):
        networks = ", ".join(f"10.{n >> 8}.{n & 255}.0/24" for n in range(count))
        return lab.file(f"service: a\nredirect: {{ outbound: {{ except: {{ networks: [{networks}] }} }} }}\n")

    lab.redirect("apply", file=many(1000))
    same(out("nft", "list", "ruleset").count("outbound.except.networks"), 2000, "a thousand networks, twice")
    before = standing()
    has(lab.redirect("apply", file=many(60000), code=1), "there are too many rules for one step")
    same(differs(before, standing()), "", "after too many")
    lab.redirect("remove")


CASES = (what_is_set_is_what_nft_makes_of_the_script, nothing_stays_behind, the_iptables_script_does_the_same,
         killed_at_any_step, killed_at_random, several_at_once, very_many_rules)

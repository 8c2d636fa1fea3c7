"""`run -- APP`: the app behind the rules, and not the machine: by its user, its control group, a network of its own, or HTTP_PROXY."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

from lab import HERE, OUTSIDE, POD, Skip, find, has, out, same, standing

ENDS = HERE / "ends_http.py"
USER, APP_USER = 1500, 1000
NAME, BY_NAME, BY_ADDRESS = "payments.test", "http://payments.test:8080/", f"http://{OUTSIDE[0]}:8080/"
VIA = "by a sidecar"

# Where no user namespaces are left, for whoever is in there: nothing of the machine changes.
NO_NAMESPACES = ["unshare", "--user", "--map-root-user", "sh", "-c",
                 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"', "sh"]


class Way:
    """One way of capturing: the value of `redirect.app`, who runs the sidecar, and where callers come."""

    dns = '"127.0.0.1:15053", "[::1]:15053"'

    def __init__(self, app, prefix=(), more="", port=15006, says=""):
        self.app, self.prefix, self.more, self.port, self.says = app, list(prefix), more, port, says

    def file(self, lab):
        return lab.file(f"""service: shop
inbound: {{ listen: "[::]:15006", app: "127.0.0.1:9000" }}
peers: {{ payments: {{ static: ["{OUTSIDE[0]}:8080"], hosts: ["{NAME}"] }} }}
dns: {{ listen: [{self.dns}], servers: [{OUTSIDE[0]}] }}
redirect: {{ app: {self.app}, dns: all{self.more} }}
admin: "off"
""")

    def argv(self, lab, *app):
        return [str(word) for word in (*self.prefix, lab.binary, "run", "-c", self.file(lab), "--", *app)]

    def run(self, lab, *app, code=0, **more):
        done = subprocess.run(self.argv(lab, *app), capture_output=True, text=True, timeout=60, **more)
        if done.returncode != code:
            raise AssertionError(f"{self.app}: {done.returncode} instead of {code}: {done.stdout}{done.stderr}")
        return done


def ways(lab):
    user = lab.as_user(USER)
    return {
        "namespace": Way("namespace", user, says="the app gets a network of its own"),
        "group": Way("rules", port=9000, says="the app alone is captured, as control group"),
        "user": Way("rules", more=f", app-uid: {APP_USER}", port=9000, says=f"captured, as user {APP_USER}"),
        "proxy": Way("auto", [*user, *NO_NAMESPACES], says="HTTP_PROXY instead"),
    }


def python(lab):
    """An interpreter that other users than root may run."""
    for program in (sys.executable, "/usr/bin/python3"):
        if subprocess.run([*lab.as_user(USER), "env", program, "-c", ""], capture_output=True).returncode == 0:
            return program
    raise Skip("there is no python3 that ordinary users may run")


def prepare(lab):
    """A peer outside, and a name server that is none: questions only lead anywhere where they are captured."""
    servers = lab.folder / "resolv.conf"
    servers.write_text("nameserver 127.0.0.53\noptions timeout:1 attempts:1\n")
    out("mount", "--bind", servers, "/etc/resolv.conf")
    lab.start([*lab.prefix["outside"], sys.executable, ENDS, "peer", OUTSIDE[0], "8080"])


def starts_of(name):
    def case(lab, chosen):
        """The app's first action is a request, to a name and to an address."""
        prepare(lab)
        way, before = ways(lab)[name], standing()
        script = f"curl -sS -m 20 {BY_NAME} && echo && curl -sS -m 20 {BY_ADDRESS}"
        for number in range(chosen.starts):
            done = way.run(lab, "sh", "-c", script)
            same(done.stdout, f"{VIA}\n{VIA}", f"start {number}: {done.stderr}")
        has(done.stderr, way.says)
        same(standing(), before, "at the end")

    case.__name__ = f"starts_lose_no_first_request_{name}"
    return case


def stops_of(name):
    def case(lab, chosen):
        """The app is asked to end under load, and its last action is a request."""
        prepare(lab)
        way, before = ways(lab)[name], standing()
        callers = lab.start([*lab.prefix["outside"], sys.executable, ENDS, "load", POD[0], way.port], stdin=subprocess.PIPE)
        for number in range(chosen.stops):
            lost, last = stop(lab, way, callers)
            same((lost, last), ([], f"last {VIA}"), f"stop {number}")
        same(standing(), before, "at the end")

    case.__name__ = f"stops_lose_no_last_request_{name}"
    return case


def stop(lab, way, callers):
    log = lab.folder / "sidecar.log"
    with log.open("w") as errors:
        sidecar = subprocess.Popen(way.argv(lab, python(lab), ENDS, "app", "9000", BY_NAME),
                                   stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        same(sidecar.stdout.readline().strip(), "open", log.read_text())
        callers.stdin.write("go\n")
        callers.stdin.flush()
        same(callers.stdout.readline().strip(), "loaded")
        sidecar.send_signal(signal.SIGTERM)
        last = sidecar.stdout.readline().strip()
        same(sidecar.wait(60), 0, log.read_text())
    finally:
        sidecar.kill()
        sidecar.wait()
    return json.loads(callers.stdout.readline()), last


def the_apps_end_is_ours(lab, _):
    prepare(lab)
    for way in ways(lab).values():
        way.run(lab, "sh", "-c", "exit 42", code=42)
        way.run(lab, "sh", "-c", "kill -KILL $$", code=137)
        has(way.run(lab, "/no/such/program", code=127).stderr, "cannot start `/no/such/program`", "installed")
        has(way.run(lab, "/etc/passwd", code=126).stderr, "cannot start `/etc/passwd`", "executable")


def what_an_app_without_privilege_may(lab, _):
    """It is who it was, with no capability, in a network where all TCP and all questions are answered and nothing else is."""
    prepare(lab)
    way = ways(lab)["namespace"]
    ids = way.run(lab, "sh", "-c", "id -u; id -g; grep CapEff /proc/self/status; cat /proc/net/dev | grep -c :").stdout.split()
    same(ids, [str(USER), str(USER), "CapEff:", "0000000000000000", "1"])
    script = HERE / "udp_and_names.py"
    same(way.run(lab, python(lab), script, NAME).stdout.split("\n")[:-1], [
        "udp 127.0.0.53: 240.240", "udp 192.0.2.53: 240.240", "tcp 127.0.0.53: 240.240", "udp fd09::2: 240.240",
        "other UDP: refused", "own: 10.9.0.1 fd09::1"])
    # The app's loopback is its own: this machine's is out of reach, as is the app's for this machine.
    server = socket.create_server(("127.0.0.1", 8099))
    has(way.run(lab, "curl", "-sS", "-m", "5", "http://127.0.0.1:8099/", code=7).stderr, "refused")
    server.close()


def a_kill_leaves_nothing(lab, chosen):
    prepare(lab)
    before, moments = standing(), random.Random(chosen.seed)
    folder = pathlib.Path("/sys/fs/cgroup")
    groups = lambda: {str(path) for path in folder.glob("**/outrigger-*")}
    old = groups()
    for number in range(20):
        way = ways(lab)[("namespace", "group", "user")[number % 3]]
        marker = f"{moments.randrange(10 ** 6, 10 ** 7)}"
        sidecar = subprocess.Popen(way.argv(lab, "sleep", marker), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.random() * 0.15)
        sidecar.kill()
        sidecar.wait()
        # An app that was just being started has a copy of all that is open here until it is itself.
        until(lambda: standing() == before, f"nothing stands after kill {number} of {way.app}")
        until(lambda: not find_processes("hold-network"), "the holder ends with the sidecar")
        for process in find_processes(marker):
            os.kill(process, signal.SIGKILL)
        until(lambda: not find_processes(marker), "the app is gone")
    # The next start takes away what was left of control groups.
    ways(lab)["group"].run(lab, "true")
    same(groups() - old, set())


def until(holds, what):
    for _ in range(200):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError(f"not within four seconds: {what}")


def find_processes(word):
    """Those of which it is an argument, but for this one; zombies have none."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def two_apps_on_one_machine(lab, _):
    """Each has rules of its own; who is nobody's app is left alone."""
    prepare(lab)
    way, before = ways(lab)["group"], standing()
    other = lab.file(way.file(lab).read_text().replace("15006", "25006").replace("9000", "9100").replace("15053", "25053")
                     .replace("dns: all", "dns: 'off'") + 'outbound: { listen: ["127.0.0.1:25001", "[::1]:25001"] }\n', "other.yaml")
    nested = [lab.binary, "run", "-c", other, "--", "sh", "-c", f"nft list tables; curl -sS -m 20 {BY_ADDRESS}"]
    said = subprocess.run([str(word) for word in nested], capture_output=True, text=True)
    same(said.stdout.count("outrigger-run-"), 1, said.stderr)
    first = subprocess.Popen(way.argv(lab, "sh", "-c", "echo open; exec sleep 60"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    same(first.stdout.readline().strip(), "open")
    said = subprocess.run([str(word) for word in nested], capture_output=True, text=True)
    same((said.stdout.count("outrigger-run-"), said.stdout.endswith(VIA)), (2, True), said.stdout + said.stderr)
    same(out("curl", "-sS", "-m", "20", BY_ADDRESS), "directly")
    has(lab.redirect("apply", file=way.file(lab), code=1), "redirected here already", "an `outrigger run`'s")
    first.terminate()
    first.wait()
    same(standing(), before)


def where_the_rules_stand_already(lab, _):
    prepare(lab)
    way = ways(lab)["group"]
    lab.redirect("apply", "--uid", "0", file=way.file(lab))
    before = standing()
    done = way.run(lab, "sh", "-c", "nft list tables")
    same(done.stdout, "table inet outrigger\n")
    has(done.stderr, "the rules of `outrigger redirect apply` are in force here")
    same(standing(), before)


def refused(lab, way, *words, prefix=(), **more):
    """One line says why, the app never starts, and nothing is changed."""
    before = standing()
    way.prefix = [*prefix, *way.prefix]
    marker = lab.folder / "started"
    done = way.run(lab, "touch", marker, code=1, **more)
    lines = [line for line in done.stderr.strip().splitlines() if " INFO " not in line]
    same(len(lines), 1, done.stderr)
    has(lines[0], *words)
    same((standing(), marker.exists()), (before, False), done.stderr)


def what_cannot_be_is_said_in_a_line(lab, _):
    prepare(lab)
    user = lab.as_user(USER)
    refused(lab, Way("rules", user), "redirect.app: `rules`: it needs CAP_NET_ADMIN")
    refused(lab, Way("auto", user, more=", app-uid: 1000"), "redirect.app-uid", "CAP_NET_ADMIN")
    refused(lab, Way("rules", more=", app-uid: 0"), "the user of the sidecar itself")
    refused(lab, Way("namespace", [*user, *NO_NAMESPACES]), "a user namespace of its own is refused", "max_user_namespaces")
    refused(lab, Way("namespace", more=", mode: tproxy"), "an app alone cannot be captured with `mode: tproxy`")
    no_groups = ["unshare", "--mount", "sh", "-c", 'umount -l -t cgroup2 -a && exec "$@"', "sh"]
    refused(lab, Way("rules", no_groups), "control groups of version 2 are not mounted here")
    out("nft", "-f", "-", input="table inet mesh { chain out { type nat hook output priority -100; "
        "meta l4proto tcp redirect to :4140; }; }")
    refused(lab, Way("rules"), "connections are redirected here already")
    out("nft", "delete", "table", "inet", "mesh")


def without_nf_tables_inside(lab, _):
    if not find("strace"):
        raise Skip("strace is not installed")
    prepare(lab)
    # As a kernel that has no NAT for nf_tables: the batch is refused. Only the holder sends one.
    nothing = [*lab.as_user(USER), "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=socket", "-e",
               "inject=socket:error=EPROTONOSUPPORT:when=1"]
    refused(lab, Way("namespace", nothing), "modprobe nf_tables")


def on_a_read_only_root_and_without_ipv6(lab, _):
    prepare(lab)
    read_only = ["unshare", "--mount", "sh", "-c",
                 'mount --make-rprivate / && mount -o remount,bind,ro / && exec "$@"', "sh"]
    for name in ("namespace", "user"):
        way = ways(lab)[name]
        way.prefix = [*read_only, *way.prefix]
        same(way.run(lab, "curl", "-sS", "-m", "20", BY_NAME).stdout, VIA, name)
    for name in ("all", "default"):
        pathlib.Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    for name, way in ways(lab).items():
        way.dns = "127.0.0.1:15053"
        same(way.run(lab, "curl", "-sS", "-m", "20", BY_NAME).stdout, VIA, name)


WAYS = ("namespace", "group", "user", "proxy")
CASES = (*map(starts_of, WAYS), *map(stops_of, WAYS), the_apps_end_is_ours, what_an_app_without_privilege_may,
         a_kill_leaves_nothing, two_apps_on_one_machine, where_the_rules_stand_already, what_cannot_be_is_said_in_a_line,
         without_nf_tables_inside, on_a_read_only_root_and_without_ipv6)

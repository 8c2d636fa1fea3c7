"""`run -- APP` where something changes or fails while the app runs: the file, the holder of its network, who it is."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess

from behind import BY_ADDRESS, ENDS, USER, VIA, Way, find_processes, prepare, python, refused, until, ways
from lab import OUTSIDE, POD, has, out, same


class Running:
    """A sidecar with an app that answers at its port 9000; ended with the block."""

    def __init__(self, lab, way, *app):
        self.lab, self.way = lab, way
        self.log = lab.folder / "running.log"
        self.file = way.file(lab)
        argv = way.argv(lab, *(app or (python(lab), ENDS, "app", "9000", BY_ADDRESS)))
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True)

    def __enter__(self):
        first = self.process.stdout.readline().strip()
        if first != "open":
            self.__exit__()
            raise AssertionError(f"did not start: {first} {self.said()}")
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def said(self):
        return self.log.read_text()

    def app(self):
        """Its process."""
        return int(self.said().split("pid=")[1].split()[0])

    def admin(self, path, *more):
        """What its admin server answers, within five seconds."""
        return out("curl", "-sS", "-m", "5", *more, "--unix-socket", self.lab.folder / "admin", f"http://admin{path}")

    def reload(self, *changes, ask=True):
        """Changes words of the file and waits for what is said of it."""
        text = self.file.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        self.file.write_text(text)
        if ask:
            before = self.ends()
            self.process.send_signal(signal.SIGHUP)
            until(lambda: self.ends() > before, "the reload is done")

    def ends(self):
        return sum(line.count("the file is in force") + line.count("the file was refused") for line in self.said().splitlines())


def call():
    """What the app answers to a caller from outside the machine's loopback."""
    return out("curl", "-sS", "-m", "10", f"http://{POD[0]}:15006/")


def reloads_leave_the_app_where_it_is(lab, _):
    """What the app is captured by is refused to change, in a line each, and its calls go on as before."""
    prepare(lab)
    way = ways(lab)["namespace"]
    # A program of the machine that listens where the app does in its own network.
    stranger = socket.create_server(("127.0.0.1", 9000))
    stranger.setblocking(False)
    with Running(lab, way) as running:
        whole = running.file.read_text()
        same(call(), VIA)
        for old, new, key in [
            ("redirect: {", "#", "redirect: "),
            ("app: namespace, ", "", "redirect: "),
            ('admin: "off"', 'admin: "off"\noutbound: { listen: ["127.0.0.1:15101", "[::1]:15101"] }', "outbound.listen: "),
        ]:
            running.reload((old, new))
            same((call(), running.said().count("the file is in force")), (VIA, 0), new)
            has(running.said().splitlines()[-2], key, "needs a restart")
            running.reload((new, old)) if new else running.file.write_text(whole)
            if not new:
                running.reload()
            has(running.said().splitlines()[-1], "in force")
            same(running.file.read_text(), whole)
            running.log.write_text("")
    try:
        stranger.accept()
        raise AssertionError("the stranger was called")
    except BlockingIOError:
        pass


def doors(app):
    """The ports of the machine's 70xx at which the app's network listens."""
    said = out("nsenter", "-t", app, "-n", "ss", "-Hltn")
    return sorted(port for port in (int(line.split()[3].rsplit(":", 1)[1]) for line in said.splitlines()) if port // 1000 == 7)


def unread(holder):
    """The bytes of questions that the holder has not looked at."""
    [line] = [line for line in out("ss", "-Hxp").splitlines() if f"pid={holder},fd=0)" in line]
    return int(line.split()[2])


def with_admin(lab, way):
    """The same with an admin server."""
    file = way.file
    way.file = lambda lab: lab.file(file(lab).read_text().replace('admin: "off"', f'admin: {{ listen: "unix:{lab.folder}/admin" }}'))
    lab.folder.chmod(0o777)
    return way


def a_slow_holder_holds_up_nobody_else(lab, _):
    """While it is asked in vain for a door all else is done; an answer after its time is nobody else's, and nobody's door."""
    prepare(lab)
    with Running(lab, with_admin(lab, ways(lab)["namespace"])) as running:
        app = running.app()
        [holder] = find_processes("hold-network")
        os.kill(holder, signal.SIGSTOP)
        running.reload(("payments: {", 'payments: { listen: "127.0.0.1:7001",'), ask=False)
        running.process.send_signal(signal.SIGHUP)
        until(lambda: unread(holder) > 0, "it asks the holder")
        same(json.loads(running.admin("/state"))["service"], "shop")
        same(running.admin("/live", "-o", "/dev/null", "-w", "%{http_code}"), "200")
        same((call(), running.ends()), (VIA, 0), "the reload goes on")
        os.kill(holder, signal.SIGCONT)
        until(lambda: running.ends() > 0, "the reload is done")
        same(doors(app), [7001], running.said())
        # Asked for in vain, and not wanted any more when it comes.
        os.kill(holder, signal.SIGSTOP)
        running.reload(("7001", "7002"), ask=False)
        last = json.loads(running.admin("/reload", "-X", "POST", "-m", "20"))
        has(str(last), "the process that holds the app's network does not answer: is it stopped?", "127.0.0.1:7002")
        same((last["applied"], doors(app)), (False, [7001]), running.said())
        running.reload(("7002", "7001"))
        os.kill(holder, signal.SIGCONT)
        until(lambda: unread(holder) == 0, "the holder has answered")
        until(lambda: doors(app) == [7001], "what came too late is closed")
        running.reload(("7001", "7002"))
        same(doors(app), [7002], running.said())
        # The end does not wait for it either.
        os.kill(holder, signal.SIGSTOP)
        running.reload(("7002", "7003"), ask=False)
        running.process.send_signal(signal.SIGHUP)
        until(lambda: unread(holder) > 0, "it asks the holder once more")
        running.process.terminate()
        same((running.process.wait(8), running.process.stdout.read().strip()), (0, f"last {VIA}"), running.said())
        until(lambda: not find_processes("hold-network"), "a stopped holder ends as well")


# Puts descriptors on their way until the kernel takes no more of this user, and a line given, takes them back.
FULL = """
import array, socket
ways = []
try:
    while True:
        ways.append(socket.socketpair())
        for _ in range(50):
            ways[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
except OSError as full:
    print("ready" if full.errno == 109 else full, flush=True)
input()
"""


def what_the_system_refuses_a_while_ends_nothing(lab, _):
    """A user may have as many descriptors on their way between processes as one may open: past it, a door is refused."""
    prepare(lab)
    few = ["prlimit", "--nofile=300:300", *lab.as_user(USER)]
    with Running(lab, Way("namespace", few)) as running:
        app = running.app()
        others = lab.start([*few, python(lab), "-c", FULL], stdin=subprocess.PIPE)
        running.reload(("payments: {", 'payments: { listen: "127.0.0.1:7001",'))
        has(running.said(), "127.0.0.1:7001 cannot be bound: too many descriptors of this user are on their way")
        same(doors(app), [])
        same(call(), VIA)
        others.communicate("\n")
        running.reload()
        same((doors(app), call()), ([7001], VIA), running.said())


def whoever_the_app_is_to_be_it_is(lab, _):
    """`app-uid` holds in each way of capturing, or the start is refused."""
    prepare(lab)
    script = ("sh", "-c", f"id -u; id -g; curl -sS -m 20 {BY_ADDRESS}")
    # Rules of `redirect apply`, for all but the sidecar.
    sidecar = lambda more, app="auto": Way(app, more=f", uid: 0, app-uid: {more}")
    lab.redirect("apply", file=sidecar(1000).file(lab))
    same(sidecar("1000, app-gid: 1001").run(lab, *script).stdout, f"1000\n1001\n{VIA}")
    lab.redirect("apply", "--uid", "1000", file=sidecar(1000).file(lab))
    for app in ("auto", "rules"):
        refused(lab, sidecar(1000, app), "leave alone what user 1000 sends")
    lab.redirect("apply", "--uid", "0", file=sidecar(1000).file(lab))
    has(Way("auto").run(lab, "true").stderr, "leave alone what user 0 sends", "redirect.app-uid")
    lab.redirect("remove")
    # Where nothing is done for the app alone.
    tproxy = Way("auto", more=", mode: tproxy, app-uid: 1000")
    same(tproxy.run(lab, "sh", "-c", "id -u").stdout, "1000\n")
    # Where it would have got a network of its own.
    out("nft", "-f", "-", input="table inet mesh { chain out { type nat hook output priority -100; "
        "meta l4proto tcp redirect to :4140; }; }")
    refused(lab, Way("auto", more=", app-uid: 1000"), "redirect.app-uid", "connections are redirected here already")
    out("nft", "delete", "table", "inet", "mesh")


def another_user_gets_no_capability(lab, _):
    """A sidecar that is not root hands none of its own on, and says which it lacks."""
    prepare(lab)
    script = ("sh", "-c", f"id -u; grep -h ^Cap /proc/self/status | grep -v Bnd; curl -sS -m 20 {BY_ADDRESS}")
    sidecar = lab.as_user(USER, "net_admin", "setuid", "setgid")
    done = Way("rules", sidecar, more=", app-uid: 1000").run(lab, *script)
    none = "".join(f"Cap{name}:\t{0:016x}\n" for name in ("Inh", "Prm", "Eff", "Amb"))
    same(done.stdout, f"1000\n{none}{VIA}", done.stderr)
    for app in ("auto", "rules"):
        refused(lab, Way(app, lab.as_user(USER, "net_admin"), more=", app-uid: 1000"), "redirect.app-uid", "CAP_SETUID and CAP_SETGID")


def delegated(lab):
    """What starts a command in a control group that belongs to the user of the sidecar."""
    root = next(line.split()[1] for line in open("/proc/mounts") if line.split()[2] == "cgroup2")
    folder = pathlib.Path(root, f"lab-{os.getpid()}")
    folder.mkdir()
    lab.at_end(lambda: until(lambda: removed(folder), "the control group is empty"))
    for path in (folder, folder / "cgroup.procs"):
        os.chown(path, USER, USER)
    return ["sh", "-c", f'echo 0 >{folder}/cgroup.procs && exec "$@"', "sh"]


def removed(folder):
    with contextlib.suppress(OSError):
        folder.rmdir()
        return True


def capabilities(said):
    """Which of its sets have any in them."""
    lines = [line.split() for line in said.splitlines() if line.startswith("Cap")]
    same(len(lines), 4, said)
    return sorted(name for name, value in lines if int(value, 16))


def what_is_captured_gets_no_capability(lab, _):
    """A service manager gives the sidecar some to hand on; by each way of capturing the app gets none of them."""
    prepare(lab)
    script = ("sh", "-c", "grep -h ^Cap /proc/self/status | grep -v Bnd")
    given = lambda *more: lab.as_user(USER, "net_bind_service", *more)
    group = [*delegated(lab), *given("net_admin")]
    for name, way, says in [
        ("group", Way("rules", group), "the app alone is captured, as control group"),
        ("namespace", Way("namespace", given()), "a network of its own"),
        ("auto", Way("auto", given()), "a network of its own"),
        ("proxy", Way("proxy", given()), ""),
        ("tproxy", Way("auto", given("net_raw"), more=", mode: tproxy"), "nothing is done for the app alone"),
    ]:
        done = way.run(lab, *script)
        has(done.stderr, says)
        same(capabilities(done.stdout), [], name)
    # Nothing was to be done to this one.
    same(capabilities(Way("'off'", given()).run(lab, *script).stdout), ["CapAmb:", "CapEff:", "CapInh:", "CapPrm:"], "off")
    # Where rules stand already, which it could take away.
    lab.redirect("apply", "--uid", "1337", file=Way("auto").file(lab))
    done = Way("auto", group).run(lab, *script)
    has(done.stderr, "are in force here")
    same(capabilities(done.stdout), [], "rules that stand")


def the_holders_end_is_the_sidecars(lab, _):
    """It is told and ends both in order, as a failure; and no holder is left behind by whoever ends in order."""
    prepare(lab)
    with Running(lab, ways(lab)["namespace"]) as running:
        same(call(), VIA)
        [holder] = find_processes("hold-network")
        os.kill(holder, signal.SIGKILL)
        same((running.process.wait(20), running.process.stdout.read().strip()), (1, f"last {VIA}"), running.said())
        has(running.said(), "ERROR the process that holds the app's network has ended", "the app has ended")
    # Whoever ends waits for its holder: nothing is left for process 1 to reap.
    reaper = ["unshare", "--fork", "--pid", "--mount-proc", "sh", "-c", '"$@"; ls -d /proc/[0-9]*; grep -l "Z (zombie)" /proc/[0-9]*/status', "sh"]
    way = Way("namespace", reaper)
    left = subprocess.run(way.argv(lab, "true"), capture_output=True, text=True, timeout=30).stdout.split()
    same([path for path in left if path != "/proc/1"][1:], [], "processes but for the one that looks")


def a_network_of_its_own_gives_no_capability(lab, _):
    """Its user namespace lets the app gain none that the sidecar could not; a root's app is told what it is."""
    prepare(lab)
    script = ("sh", "-c", "grep -h -e CapBnd -e CapEff /proc/self/status")
    drop = ["setpriv", "--bounding-set=-net_admin,-net_raw"]
    outside = out(*drop, *script).strip()
    same(Way("namespace", drop).run(lab, *script).stdout.strip(), outside, "root without some")
    user = lab.as_user(USER)
    outside = out(*drop, *user, *script).strip()
    done = Way("namespace", [*drop, *user]).run(lab, *script)
    same(done.stdout.strip(), outside, "a user")
    assert "WARN" not in done.stderr, done.stderr
    has(Way("namespace").run(lab, "true").stderr, "WARN in a network of its own the app is root of nothing else")


OTHERS_UDP = """
import socket
for family, own, other in ((socket.AF_INET, "10.9.0.1", "10.9.0.2"), (socket.AF_INET6, "fd09::1", "fd09::2")):
    any_ = "0.0.0.0" if family == socket.AF_INET else "::"
    here = socket.socket(family, socket.SOCK_DGRAM)
    here.bind((any_, 7946))
    here.settimeout(5)
    for to in (own, "127.0.0.1" if family == socket.AF_INET else "::1", other):
        asker = socket.socket(family, socket.SOCK_DGRAM)
        asker.settimeout(5)
        asker.connect((to, 7946))
        asker.send(b"x")
        try:
            if to == other:
                asker.recv(1)
            print(to, here.recvfrom(1)[0])
        except ConnectionRefusedError:
            print(to, "refused")
"""


def udp_to_others_does_not_come_back(lab, _):
    """An app that listens at the very port where it calls another is not called by itself; its own addresses are."""
    prepare(lab)
    said = ways(lab)["namespace"].run(lab, python(lab), "-c", OTHERS_UDP).stdout.splitlines()
    same(said, ["10.9.0.1 b'x'", "127.0.0.1 b'x'", "10.9.0.2 refused", "fd09::1 b'x'", "::1 b'x'", "fd09::2 refused"])
    echo = "cat /proc/sys/net/ipv4/icmp_echo_ignore_all /proc/sys/net/ipv6/icmp/echo_ignore_all"
    same(ways(lab)["namespace"].run(lab, "sh", "-c", echo).stdout.split(), ["1", "1"], "pings are left unanswered")


def an_app_calls_itself_by_its_own_address(lab, _):
    """Also where its port is the sidecar's own outside, as listener for all addresses or for one."""
    prepare(lab)
    for listen in ("[::]:9000", "0.0.0.0:9000", f"{POD[0]}:9000"):
        way = ways(lab)["namespace"]
        file = way.file
        way.file = lambda lab, listen=listen: lab.file(file(lab).read_text().replace("[::]:15006", listen)
                                                        .replace("app: namespace", "app: namespace, inbound: 'off'"))
        script = (f"{python(lab)} {ENDS} peer 127.0.0.1 9000 & for n in 1 2 3 4 5 6 7 8 9; do "
                  f"curl -sS -m 5 --retry 20 --retry-all-errors --retry-delay 1 -o /dev/null http://127.0.0.1:9000/ && break; done; "
                  f"curl -sS -m 5 -w ' %{{http_code}}' http://{POD[0]}:9000/; kill %1; wait")
        said = way.run(lab, "bash", "-c", script).stdout
        same(said.splitlines(), ["ready", f"{VIA} 200"], listen)


def two_containers_of_a_pod(lab, _):
    """Each begins its count of processes anew: the same number in both is no reason to be refused."""
    prepare(lab)
    container = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
    with Running(lab, Way("rules", container, more=", app-uid: 1000")) as running:
        file = lab.file(Way("rules", more=", app-uid: 1001").file(lab).read_text().replace("15006", "25006").replace("9000", "9100")
                        .replace("15053", "25053").replace("dns: all", "dns: 'off'")
                        + 'outbound: { listen: ["127.0.0.1:25001", "[::1]:25001"] }\n', "other.yaml")
        other = [*container, lab.binary, "run", "-c", file, "--", "curl", "-sS", "-m", "20", BY_ADDRESS]
        said = subprocess.run([str(word) for word in other], capture_output=True, text=True, timeout=60)
        same((said.stdout, said.returncode), (VIA, 0), said.stderr)
        has(said.stderr, "table inet outrigger-run-1-1")
        # What starts it there hands no signal on.
        running.process.kill()


def groups_of_two_containers(lab, _):
    """Nor does one take the other's control group for left over, while its app is not in there yet."""
    prepare(lab)
    container = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
    # Its app waits a second for the addresses of a peer, of which the name server says nothing.
    slow = Way("rules", container)
    text = slow.file(lab).read_text().replace("peers: {", 'peers: { slow: { dns: "slow.test:80" },').replace(f"[{OUTSIDE[0]}] }}", "[10.9.0.99] }")
    slow.file = lambda lab: lab.file(text, "slow.yaml")
    other = Way("rules", container)
    moved = (text.replace("15006", "25006").replace("9000", "9100").replace("15053", "25053").replace("dns: all", "dns: 'off'")
             + 'outbound: { listen: ["127.0.0.1:25001", "[::1]:25001"] }\n')
    other.file = lambda lab: lab.file(moved, "other.yaml")
    app = ("sh", "-c", f"echo open; grep ^0: /proc/self/cgroup; curl -sS -m 20 {BY_ADDRESS}; echo; exec sleep 60")
    root = pathlib.Path(next(line.split()[1] for line in open("/proc/mounts") if line.split()[2] == "cgroup2"))
    made = lambda: {path.stat().st_ino for path in root.glob("**/outrigger-*")}
    before = made()
    first = subprocess.Popen(slow.argv(lab, *app), stdout=subprocess.PIPE, stderr=(log := lab.folder / "first.log").open("w"), text=True)
    try:
        until(lambda: made() - before, "its group is made")
        sidecar = int(pathlib.Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text())
        os.kill(sidecar, signal.SIGSTOP)
        same(log.read_text().count("the app runs"), 0, "stopped in time")
        with Running(lab, other, *app) as second:
            there = second.process.stdout.readline()
            os.kill(sidecar, signal.SIGCONT)
            same(first.stdout.readline().strip(), "open", log.read_text())
            here = first.stdout.readline()
            assert here != there, f"both in {here}"
            same((first.stdout.readline().strip(), second.process.stdout.readline().strip()), (VIA, VIA), log.read_text())
            second.process.kill()
    finally:
        first.kill()
        first.wait()


def neighbours_over_ipv6_are_reached_without_a_default_route(lab, _):
    prepare(lab)
    lab.start([*lab.prefix["outside"], python(lab), ENDS, "peer", OUTSIDE[1], "8080"])
    by_ipv6 = ("curl", "-sS", "-m", "20", f"http://[{OUTSIDE[1]}]:8080/")
    out("ip", "-6", "route", "del", "default")
    same(ways(lab)["namespace"].run(lab, *by_ipv6).stdout, VIA)


# Calls from the port that the sidecar has a connection from to the same place.
SAME_PORT = f"""
import json, socket, struct
def call(port=0):
    sock = socket.socket()
    sock.settimeout(20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    sock.connect(("{OUTSIDE[0]}", 7000))
    return sock, json.loads(sock.makefile().readline())["peer"]
held, (address, port) = call()
same = 0
for _ in range(40):
    sock, _ = call(port)
    same += sock.getsockname() == (address, port)
    # No trace of it keeps the port.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
print(same)
"""


def an_apps_own_ports_are_nobody_elses(lab, _):
    """In a network of its own it may call from the address and port of a connection of the sidecar's: that is no loop."""
    prepare(lab)
    lab.serve("outside", 0, "outside", 7000)
    same(ways(lab)["namespace"].run(lab, python(lab), "-c", SAME_PORT).stdout.strip(), "40")


CASES = (reloads_leave_the_app_where_it_is, a_slow_holder_holds_up_nobody_else, what_the_system_refuses_a_while_ends_nothing,
         whoever_the_app_is_to_be_it_is,
         another_user_gets_no_capability, what_is_captured_gets_no_capability, the_holders_end_is_the_sidecars,
         a_network_of_its_own_gives_no_capability, udp_to_others_does_not_come_back,
         an_app_calls_itself_by_its_own_address, an_apps_own_ports_are_nobody_elses, two_containers_of_a_pod, groups_of_two_containers,
         neighbours_over_ipv6_are_reached_without_a_default_route)

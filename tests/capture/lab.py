"""The namespaces and the processes in them: a pod, a host outside, and one beyond that is reached through the pod.

    outside 10.9.0.2, fd09::2  ──veth──  10.9.0.1, fd09::1  pod  10.8.0.1, fd08::1  ──veth──  10.8.0.2, fd08::2 beyond

The pod is this process's own namespace. All of them hang on our processes and end with them.
"""

import atexit
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ENDS = HERE / "ends.py"
INSIDE = "OUTRIGGER_CAPTURE_INSIDE"

POD, OUTSIDE, BEYOND = ("10.9.0.1", "fd09::1"), ("10.9.0.2", "fd09::2"), ("10.8.0.2", "fd08::2")
APP, SIDECAR, OTHER = 1000, 1337, 1400


class Skip(Exception):
    """A case cannot be tried on this machine, and why."""


def enter():
    """Runs this program once more in a network namespace of its own; returns why that cannot be, or None inside."""
    if os.environ.get(INSIDE):
        return None
    missing = [name for name in ("unshare", "nsenter", "setpriv", "ip", "nft") if not find(name)]
    if missing:
        return f"{', '.join(missing)} not installed"
    if os.geteuid() != 0:
        return "several users are needed, and only root can be each of them"
    if (tried := subprocess.run(["unshare", "--net", "nft", "list", "ruleset"], capture_output=True, text=True)).returncode:
        return f"a network namespace with nf_tables is refused: {tried.stderr.strip()}"
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, "-u", *sys.argv])


def find(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def out(*argv, **more):
    """What a program prints; it must succeed."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, **more)
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, argv))}: {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Lab:
    """Everything a case needs; what it started ends with it."""

    def __init__(self, binary):
        self.binary = binary
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="outrigger-capture-"))
        self.folder.chmod(0o755)
        self.children, self.prefix, self.last = [], {"pod": []}, []
        atexit.register(self.close)

    def network(self):
        out("ip", "link", "set", "lo", "up")
        for name, near, far, number in (("outside", POD, OUTSIDE, 9), ("beyond", ("10.8.0.1", "fd08::1"), BEYOND, 8)):
            holder = self.start(["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"])
            self.prefix[name] = ["nsenter", "-t", str(holder.pid), "-n"]
            here, there = f"to-{name}", f"{name}-eth0"
            out("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", holder.pid)
            sides = (([], here, near), (self.prefix[name], there, far))
            for side, device, (v4, v6) in sides:
                out(*side, "ip", "addr", "add", f"{v4}/24", "dev", device)
                out(*side, "ip", "addr", "add", f"{v6}/64", "dev", device, "nodad")
                # Link-local addresses would come by themselves, some time later.
                out(*side, "ip", "link", "set", device, "addrgenmode", "none", "up")
                out(*side, "ip", "link", "set", "lo", "up")
            out(*self.prefix[name], "ip", "route", "add", "default", "via", near[0])
            out(*self.prefix[name], "ip", "-6", "route", "add", "default", "via", near[1])
        out("ip", "route", "add", "default", "via", OUTSIDE[0])
        out("ip", "-6", "route", "add", "default", "via", OUTSIDE[1])
        for path, value in (("ipv4/ip_forward", 1), ("ipv6/conf/all/forwarding", 1), ("ipv4/ip_unprivileged_port_start", 0)):
            pathlib.Path(f"/proc/sys/net/{path}").write_text(str(value))

    def start(self, argv, **more):
        """A process that says `ready` (or `open`) on its first line."""
        child = subprocess.Popen([str(word) for word in argv], stdout=subprocess.PIPE, text=True, **more)
        self.children.append(child)
        if child.stdout.readline().strip() not in ("ready", "open"):
            raise AssertionError(f"did not start: {argv}")
        return child

    def as_user(self, uid, *capabilities):
        grants = [f"+{name}" for name in capabilities]
        more = [f"--inh-caps={','.join(grants)}", f"--ambient-caps={','.join(grants)}"] if grants else []
        return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *more]

    def serve(self, where, uid, name, *ports, capabilities=(), flags=()):
        who = self.as_user(uid, *capabilities)
        return self.start([*self.prefix[where], *who, sys.executable, ENDS, "serve", name, *ports, *flags])

    def dial(self, where, uid, address, port, *more, kind="dial"):
        argv = [*self.prefix[where], *self.as_user(uid), sys.executable, ENDS, kind, address, port, *more]
        return json.loads(out(*argv))

    def hold(self, where, uid, address, port, *more):
        """A connection that goes on when `go_on` is called."""
        argv = [*self.prefix[where], *self.as_user(uid), sys.executable, ENDS, "dial", address, port, "--hold", *more]
        return self.start(argv, stdin=subprocess.PIPE)

    def close_servers(self):
        """Ends all processes but those that hold the namespaces."""
        for child in self.children[2:]:
            child.kill()
            child.wait()
        del self.children[2:]

    def file(self, text, name="outrigger.yaml"):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def redirect(self, command, *more, file=None, code=0, prefix=()):
        """Runs `outrigger redirect`; what it says, on either way."""
        config = ["-c", file] if file else []
        argv = [*prefix, self.binary, "redirect", command, *config, *more]
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
        said = done.stdout + done.stderr
        if done.returncode != code:
            raise AssertionError(f"redirect {command}: {done.returncode} instead of {code}: {said}")
        return said

    def at_end(self, what):
        """Does this when all that was started has ended."""
        self.last.append(what)

    def close(self):
        for child in self.children:
            with contextlib.suppress(OSError):
                child.kill()
            child.wait()
        self.children, last, self.last = [], self.last, []
        for what in last:
            what()
        shutil.rmtree(self.folder, ignore_errors=True)


def standing():
    """All that must be as before: tables, rules and routes, byte for byte."""
    views = (["nft", "list", "ruleset"], ["ip", "rule"], ["ip", "-6", "rule"], ["ip", "route", "show", "table", "all"],
             ["ip", "-6", "route", "show", "table", "all"])
    return "\n".join(out(*view) for view in views)


def same(found, meant, what=""):
    """Fails unless both are the same."""
    if found != meant:
        raise AssertionError(f"{what}: {found!r} instead of {meant!r}")


def has(text, *words):
    """Fails unless all of them stand in the text."""
    for word in words:
        if word not in text:
            raise AssertionError(f"`{word}` is not in: {text}")

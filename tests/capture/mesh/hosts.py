"""Machines as network namespaces on one bridge: each has addresses of both IP families, its own /etc/hosts, and what runs
there. They hang on processes of ours and end with them; nothing of the machine's own network is touched."""

import os
import pathlib
import shutil
import subprocess
import sys

INSIDE = "OUTRIGGER_CAPTURE_INSIDE"
SIDECAR = 1337


def enter():
    """Runs this program once more in a network namespace that has only the bridge; returns why that cannot be, or None."""
    if os.environ.get(INSIDE):
        return None
    missing = [name for name in ("unshare", "nsenter", "ip", "nft", "setpriv") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not installed"
    if os.geteuid() != 0:
        return "only root can give services and sidecars users of their own"
    tried = subprocess.run(["unshare", "--net", "nft", "add", "table", "inet", "outrigger_tried"], capture_output=True, text=True)
    if tried.returncode:
        return f"a network namespace with nftables is refused: {tried.stderr.strip()}"
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, "-u", *sys.argv])


def run(*argv, **more):
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True, **more).stdout


def bridge():
    """The network between all hosts."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    run("ip", "link", "set", "br0", "up")


class Host:
    """One machine; `number` is the last part of its addresses, `families` which of them it has."""

    def __init__(self, lab, name, number, names, families=(4, 6)):
        self.lab, self.name, self.v4, self.v6 = lab, name, f"10.88.0.{number}", f"fd88::{number}"
        ready = lab.path(f"{name}-is-there")
        holder = lab.start(f"host-{name}", ["unshare", "--net", "--mount", "sh", "-c", f"touch {ready}; exec sleep infinity"],
                           ready=ready.exists)
        self.prefix = ("nsenter", "-t", str(holder.child.pid), "-n", "-m")
        port = f"v{number}"
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(holder.child.pid))
        run("ip", "link", "set", port, "master", "br0", "up")
        self.run("ip", "link", "set", "lo", "up")
        if 4 in families:
            self.run("ip", "addr", "add", f"{self.v4}/24", "dev", "eth0")
        if 6 in families:
            self.run("ip", "addr", "add", f"{self.v6}/64", "dev", "eth0", "nodad")
        self.run("ip", "link", "set", "eth0", "up")
        # As on most machines; without a route for it nothing is sent to an address, and so nothing captured.
        for family in families:
            self.run("ip", f"-{family}", "route", "add", "default", "dev", "eth0")
        known = lab.path(f"{name}.hosts")
        known.write_text("127.0.0.1 localhost\n" + names)
        self.run("mount", "--bind", known, "/etc/hosts")
        # Nobody answers there, and that is told at once.
        servers = lab.path(f"{name}.resolv.conf")
        servers.write_text("nameserver 127.0.0.1\n")
        self.run("mount", "--bind", servers, "/etc/resolv.conf")

    def run(self, *argv, **more):
        return run(*self.prefix, *argv, **more)

    def start(self, what, argv, ready=None, user=None, **popen):
        """A service here: as nobody, or another user."""
        who = user or ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
        return self.lab.start(f"{self.name}-{what}", [*self.prefix, *who, *argv], ready=ready, **popen)

    def listens(self, port, host="127.0.0.1"):
        tried = f"import socket; socket.create_connection(('{host}', {port}), timeout=1)"
        asked = subprocess.run([*self.prefix, "setpriv", "--reuid", str(SIDECAR), "--clear-groups", "--regid", str(SIDECAR),
                                sys.executable, "-c", tried], capture_output=True)
        return asked.returncode == 0

    def get(self, url):
        """What curl makes of it, as the service's user."""
        return self.call("curl", "-sS", "--max-time", "10", url)

    def call(self, *argv, ok=True, **more):
        """A command of the service's user; its output, or its exit code where it may fail."""
        done = subprocess.run([*self.prefix, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
                               *map(str, argv)], capture_output=True, text=True, timeout=60, **more)
        if not ok:
            return done.returncode
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(map(str, argv))} gave {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout


def readable(path):
    """Lets the sidecar's user read what was made by root."""
    for one in [path, *pathlib.Path(path).rglob("*")]:
        os.chown(one, SIDECAR, SIDECAR)

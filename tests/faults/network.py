"""The network between a caller's sidecar and the endpoints: two namespaces of our own, in which packets can be lost.

Nothing of the machine's own network is touched: the namespaces hang on our processes and end with them. Packets are
lost by a routing rule of the receiving side that drops them without a word, so neither side learns it from the system.
"""

import os
import shutil
import subprocess
import sys

INSIDE = "OUTRIGGER_FAULTS_INSIDE"
CALLER, GATEWAY = "10.77.0.1", "10.77.0.2"


def enter():
    """Runs this program once more in a network namespace of its own; returns why that cannot be, or None inside."""
    if os.environ.get(INSIDE):
        prepare()
        return None
    missing = [name for name in ("unshare", "nsenter", "ip") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not installed"
    # Who is not root may still have a user namespace, where the machine allows it.
    unshare = ["unshare", "--net"] + ([] if os.geteuid() == 0 else ["--user", "--map-root-user"])
    tried = subprocess.run([*unshare, "ip", "link", "add", "name", "va", "type", "veth", "peer", "name", "vb"],
                           capture_output=True, text=True)
    if tried.returncode:
        return f"a network namespace is refused: {tried.stderr.strip()}"
    os.environ[INSIDE] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, "-u", *sys.argv])


class Loopback:
    """No network of our own: all endpoints on loopback, and nothing can be lost."""

    holes = False
    prefix = ()

    def __init__(self, lab, endpoints):
        self.hosts = ["127.0.0.1"] * endpoints


class Namespaces:
    """The caller's side is this process's namespace, the endpoints' side that of a process held for it."""

    holes = True

    def __init__(self, lab, endpoints):
        self.hosts = [f"10.77.1.{number + 1}" for number in range(endpoints)]
        ready = lab.path("network-is-there")
        holder = lab.start("network", ["unshare", "--net", "sh", "-c", f"touch {ready}; exec sleep infinity"],
                           ready=ready.exists)
        self.prefix = ("nsenter", "-t", str(holder.child.pid), "-n")
        prepare(*self.prefix)
        subprocess.run(["ip", "link", "del", "va"], capture_output=True)  # of an earlier part, if there was one
        run("ip", "link", "add", "name", "va", "type", "veth", "peer", "name", "vb")
        run("ip", "link", "set", "vb", "netns", str(holder.child.pid))
        run("ip", "addr", "add", f"{CALLER}/24", "dev", "va")
        run("ip", "link", "set", "va", "up")
        run(*self.prefix, "ip", "addr", "add", f"{GATEWAY}/24", "dev", "vb")
        run(*self.prefix, "ip", "link", "set", "vb", "up")
        for host in self.hosts:
            run(*self.prefix, "ip", "addr", "add", f"{host}/32", "dev", "lo")
        run("ip", "route", "add", "10.77.1.0/24", "via", GATEWAY)

    def hole(self, host, ways, action="add"):
        """From now on packets are lost, `to` the host, `from` it, or both."""
        if "to" in ways:
            run(*self.prefix, "ip", "rule", action, "pref", "10", "to", host, "blackhole")
        if "from" in ways:
            run("ip", "rule", action, "pref", "10", "from", host, "blackhole")

    def close(self, host, ways):
        """Packets arrive again."""
        self.hole(host, ways, "del")


def prepare(*side):
    """Makes a new namespace ready: our rules come before the one that finds local addresses, which is the first."""
    run(*side, "ip", "link", "set", "lo", "up")
    run(*side, "ip", "rule", "add", "pref", "100", "lookup", "local")
    run(*side, "ip", "rule", "del", "pref", "0")


def run(*argv):
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

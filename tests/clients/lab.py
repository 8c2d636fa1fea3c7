"""Starts and ends everything a case needs: free ports, processes, sidecars, and meshes of two sidecars."""

import atexit
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
LOOPBACK = "127.0.0.1"


class Missing(Exception):
    """Software that a case needs is not on this machine: the case is skipped, and says why."""


def wait_for(condition, what, within=20.0):
    """Polls `condition` until it is true and returns its value; `what` names it when the clock runs out."""
    end = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not so within {within:g} s")
        time.sleep(0.02)


def listens(port, host=LOOPBACK):
    """Whether a connection to the port is taken."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def find(*names):
    """The path of the first program that is there, looked for where Debian puts servers too."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"
    for name in names:
        if found := shutil.which(name, path=path):
            return found
        if hits := sorted(pathlib.Path("/").glob(name.lstrip("/"))):
            return str(hits[-1])
    raise Missing(f"{names[0]} is not installed (tests/clients/install.sh installs it)")


class Process:
    """A program in a process group of its own, with its output in a file; ended by `stop` or at the suite's end."""

    def __init__(self, name, argv, log, **popen):
        self.name, self.log = name, log
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, **popen)

    def alive(self):
        return self.child.poll() is None

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, number)

    def stop(self, within=6.0):
        """SIGTERM, then SIGKILL when `within` seconds are over; returns the exit code."""
        if self.alive():
            self.signal(signal.SIGTERM)
            try:
                self.child.wait(within)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
        self.signal(signal.SIGKILL)  # what the program left behind in its group
        return self.child.wait()

    def rss(self):
        """Resident memory in bytes."""
        for line in pathlib.Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"{self.name} has no VmRSS: it ended")

    def output(self):
        return pathlib.Path(self.log).read_text(errors="replace")


class Sidecar(Process):
    """A running `outrigger run -c FILE`, started through `prefix` (say, into a network of its own)."""

    def __init__(self, lab, name, config, prefix=()):
        self.admin = lab.port()
        self.file = lab.path(f"{name}.yaml")
        # JSON is YAML: the file is written without a YAML library.
        config = {"service": name, "grace": "2s", "admin": f"{LOOPBACK}:{self.admin}",
                  "telemetry": {"access-log": {"log": "all", "format": "json"}}, **config}
        self.file.write_text(json.dumps(config, indent=2))
        super().__init__(name, [*prefix, lab.binary, "run", "-c", self.file], lab.path(f"{name}.log"))

    def get(self, path):
        """Status and body of the admin's answer, or None while it does not answer."""
        connection = http.client.HTTPConnection(LOOPBACK, self.admin, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return None
        finally:
            connection.close()

    def ready(self):
        if not self.alive():
            raise RuntimeError(f"sidecar {self.name} ended with {self.child.returncode}: {self.output()[-1500:]}")
        answer = self.get("/ready")
        return answer is not None and answer[0] == 200


class Place:
    """Where a case finds the service: at its own address, or at the caller's sidecar."""

    def __init__(self, direct, name, port, tcp, mesh, unix=None):
        self.direct, self.name, self.host, self.port = direct, name, LOOPBACK, port
        self.tcp, self.mesh, self.unix = tcp, mesh, unix

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def url(self, path="/", scheme="http"):
        return f"{scheme}://{self.name}{path}"


class Mesh:
    """caller -> outbound sidecar -> inbound sidecar -> `app`, and the straight way to `app` beside it."""

    def __init__(self, lab, name, app, inbound=None, peer=None, outbound=None, app_at=None, unix_app=None):
        self.direct = Place(True, name, app, app, self, unix_app)
        self.through = self.caller = self.callee = None
        if lab.direct:
            return
        entry, exit_, tcp = lab.port(), lab.port(), lab.port()
        self.entry = entry
        self.callee = lab.sidecar(f"{name}-in", {
            "outbound": {"listen": f"{LOOPBACK}:{lab.port()}"},
            "inbound": {"listen": f"{LOOPBACK}:{entry}", "app": app_at or f"{LOOPBACK}:{app}", **(inbound or {})}})
        peer = {"static": [f"{LOOPBACK}:{entry}"], **(peer or {})}
        if peer.get("protocol") == "tcp":
            peer["listen"] = f"{LOOPBACK}:{tcp}"
        self.caller = lab.sidecar(f"{name}-out", {
            "outbound": {"listen": f"{LOOPBACK}:{exit_}", "allow": ["127.0.0.0/8"], **(outbound or {})},
            "peers": {name: peer}})
        unix = (outbound or {}).get("listen", "")
        self.through = Place(False, name, exit_, tcp, self, unix.removeprefix("unix:") if "unix:" in unix else None)

    def memory(self):
        """Resident bytes of the two sidecars, or an empty tuple in direct mode."""
        return tuple(s.rss() for s in (self.caller, self.callee) if s)


class Lab:
    """One area's processes and files; `stop` ends and removes them."""

    def __init__(self, name, binary, direct):
        self.name, self.binary, self.direct = name, binary, direct
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"outrigger-{name}-"))
        self.folder.chmod(0o755)  # PostgreSQL runs as another user
        self.running, self.given = [], set()
        atexit.register(self.stop)

    def path(self, name):
        return self.folder / name

    def port(self):
        """A port of loopback that was free a moment ago and is given out once."""
        while True:
            with socket.socket() as probe:
                probe.bind((LOOPBACK, 0))
                port = probe.getsockname()[1]
            if port not in self.given:
                self.given.add(port)
                return port

    def start(self, name, argv, ready=None, within=30.0, **popen):
        """Starts a program and waits for `ready` (a port, or a callable)."""
        process = Process(name, argv, self.path(f"{name}.log"), **popen)
        self.running.append(process)
        check = (lambda: listens(ready)) if isinstance(ready, int) else ready

        def up():
            if not process.alive():
                raise RuntimeError(f"{name} ended with {process.child.returncode}: {process.output()[-1500:]}")
            return check()
        if check:
            wait_for(up, f"{name} is up", within)
        return process

    def serve(self, script, *extra, name=None):
        """Starts tests/clients/servers/SCRIPT on a free port and returns the port."""
        port = self.port()
        runner = sys.executable if script.endswith(".py") else find("node")
        self.start(name or script, [runner, HERE / "servers" / script, port, *extra], ready=port)
        return port

    def sidecar(self, name, config):
        sidecar = Sidecar(self, name, config)
        self.running.append(sidecar)
        wait_for(sidecar.ready, f"sidecar {name} is ready")
        return sidecar

    def mesh(self, name, app, **kinds):
        return Mesh(self, name, app, **kinds)

    def logs(self, last=25):
        """The end of every log, for the report of a failure."""
        for file in sorted(self.folder.glob("*.log")):
            lines = file.read_text(errors="replace").splitlines()[-last:]
            if lines:
                yield f"--- {file.name}"
                yield from (line[:300] for line in lines)

    def stop(self, keep=False):
        atexit.unregister(self.stop)
        while self.running:
            self.running.pop().stop()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

"""The endpoints, and what befalls them: at any time at most half of them are under a fault, chosen by a seed."""

import collections
import heapq
import itertools
import json
import pathlib
import signal
import time

from lab import LOOPBACK, Process, Sidecar, listens, wait_for

HERE = pathlib.Path(__file__).resolve().parent
# How long a fault lasts, and how long nothing new happens after one began; seconds.
LASTS, PAUSES = (0.15, 2.5), (0.02, 0.5)
# An endpoint counts as ill for so long after its fault: an ejected one is tried by a live request from one second on,
# so nobody who goes by what became of requests can know sooner that it is well.
SETTLES = 1.5
# The chance that a fault befalls half of the endpoints at once.
TOGETHER = 0.12


class Endpoint:
    """An app that executes and answers, and where there are two hops the sidecar before it."""

    def __init__(self, lab, net, number, speaks, two_hops):
        self.lab, self.net, self.speaks, self.two_hops = lab, net, speaks, two_hops
        self.name, self.host = f"endpoint-{number}", net.hosts[number]
        # In a network of our own all ports are free.
        self.port = lab.port()
        self.app_port = lab.port() if two_hops else self.port
        self.app_host = LOOPBACK if two_hops else self.host
        self.ledger, self.orders = lab.path(f"{self.name}.ledger"), lab.path(f"{self.name}.orders")
        self.ledger.touch()
        self.serials = itertools.count()
        self.app = self.sidecar = None
        self.start_app()
        if two_hops:
            self.start_sidecar()

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def start_app(self):
        argv = [*self.net.prefix, "node", HERE / "endpoint.mjs", self.app_host, self.app_port, self.ledger,
                self.orders, self.speaks]
        self.app = Process(self.name, argv, self.lab.path(f"{self.name}.log"))
        self.lab.running.append(self.app)

    def start_sidecar(self):
        config = {"outbound": {"listen": f"{LOOPBACK}:{self.lab.port()}"}, "workers": 1, "admin": "off",
                  "inbound": {"listen": self.address, "app": f"{LOOPBACK}:{self.app_port}"}}
        self.sidecar = Sidecar(self.lab, f"{self.name}-sidecar", config, self.net.prefix)
        self.lab.running.append(self.sidecar)

    def noted(self, line):
        return line in self.ledger.read_text().splitlines()

    def is_up(self):
        """Whether it listens, and not only the one before it that was killed did."""
        up = self.noted(f"U {self.app.child.pid}")
        door = not self.two_hops or (self.sidecar.alive() and listens(self.port, self.host))
        return self.app.alive() and up and door

    def order(self, **orders):
        """Tells the app how to behave from now on."""
        orders = {"each": "well", "serial": next(self.serials), **orders}
        self.orders.write_text(json.dumps(orders))
        self.app.signal(signal.SIGUSR2)
        return orders["serial"]

    def parts(self, rng):
        """Whom a fault befalls: the app, its sidecar, or both."""
        if not self.two_hops:
            return [self.app]
        return rng.choice([[self.app], [self.sidecar], [self.app, self.sidecar]])

    def revive(self):
        if not self.app.alive():
            self.start_app()
        if self.two_hops and not self.sidecar.alive():
            self.start_sidecar()

    def stop(self):
        for part in filter(None, (self.app, self.sidecar)):
            part.stop()


def start(lab, net, speaks, two_hops):
    """All endpoints, up."""
    them = [Endpoint(lab, net, number, speaks, two_hops) for number in range(len(net.hosts))]
    for one in them:
        wait_for(one.is_up, f"{one.name} is up")
    return them


class Faults:
    """Chooses endpoints, kinds and times; an endpoint counts as well again only when it truly is."""

    def __init__(self, them, net, rng, begin, settles=SETTLES):
        self.them, self.net, self.rng, self.begin, self.settles = them, net, rng, begin, settles
        self.ill, self.later, self.order = set(), [], itertools.count()
        self.counts, self.story = collections.Counter(), []
        self.kinds = ["kill", "freeze", "restart", "reset", "torn"] + (["hole"] if net.holes else [])

    def run(self, until):
        """Makes faults until it is `until` (monotonic seconds), and waits for the last ones' end."""
        self.at(time.monotonic(), lambda: self.next(until))
        while self.later:
            when, _, act = heapq.heappop(self.later)
            time.sleep(max(0.0, when - time.monotonic()))
            act()

    def at(self, when, act):
        heapq.heappush(self.later, (when, next(self.order), act))

    def next(self, until):
        now = time.monotonic()
        if now >= until:
            return
        room = len(self.them) // 2 - len(self.ill)
        if not room:
            self.at(now + PAUSES[0], lambda: self.next(until))
            return
        well = [one for one in self.them if one not in self.ill]
        kind = self.rng.choice(self.kinds)
        many = room if self.rng.random() < TOGETHER else min(room, 1)
        for one in self.rng.sample(well, many):
            lasts = min(self.rng.uniform(*LASTS), max(0.1, until - now))
            self.ill.add(one)
            name, end = getattr(self, kind)(one)
            self.counts[name] += 1
            self.tell(f"{one.name} {name} for {lasts:.2f} s")
            self.at(now + lasts, lambda one=one, end=end: self.heal(one, end))
        self.at(now + self.rng.uniform(*PAUSES), lambda: self.next(until))

    def heal(self, one, end):
        end()
        self.watch(one, time.monotonic() + 15)

    def watch(self, one, latest):
        if time.monotonic() > latest:
            raise TimeoutError(f"{one.name} did not come back: {one.app.output()[-1000:]}")
        if one.is_up():
            self.tell(f"{one.name} is well")
            self.at(time.monotonic() + self.settles, lambda: self.ill.discard(one))
        else:
            self.at(time.monotonic() + 0.02, lambda: self.watch(one, latest))

    def tell(self, what):
        self.story.append(f"{time.monotonic() - self.begin:8.3f} {time.time():.3f} {what}")

    def kill(self, one):
        parts = one.parts(self.rng)
        for part in parts:
            part.signal(signal.SIGKILL)
            part.child.wait()
        return f"kill{which(one, parts)}", one.revive

    def freeze(self, one):
        parts = one.parts(self.rng)
        for part in parts:
            part.signal(signal.SIGSTOP)
        return f"freeze{which(one, parts)}", lambda: [part.signal(signal.SIGCONT) for part in parts]

    def restart(self, one):
        parts = one.parts(self.rng)
        for part in parts:
            part.signal(signal.SIGTERM)

        def end():
            for part in parts:
                part.stop(within=4.0)
            one.revive()
        return f"restart{which(one, parts)}", end

    def reset(self, one):
        """Connections are reset: all of them at once, and then one in two that brings a request."""
        each = self.rng.choice(["reset", "refused", "stream", "head"])
        # HTTP/2's refused stream says that its server has enough to do, not that it is ill: nobody is ejected for it.
        one.order(now=self.rng.random() < 0.7, each=each, share=0.2 if each == "refused" else 0.5)
        return f"reset ({each})", lambda: one.order(each="well")

    def torn(self, one):
        """Every second answer breaks off in its body; nobody can repair that."""
        one.order(each="body")
        return "torn body", lambda: one.order(each="well")

    def hole(self, one):
        ways = self.rng.choice([("to",), ("from",), ("to", "from")])
        self.net.hole(one.host, ways)
        return f"hole ({' and '.join(ways)})", lambda: self.net.close(one.host, ways)


def which(one, parts):
    names = ["app" if part is one.app else "sidecar" for part in parts]
    return f" ({' and '.join(names)})" if one.two_hops else ""

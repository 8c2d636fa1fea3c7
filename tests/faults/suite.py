"""The command line, and the parts: one caller's sidecar before several endpoints, each a process that faults befall."""

import argparse
import json
import os
import pathlib
import random
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "clients")]

import endpoints
import ledger
import limits
import network
import rotation
from lab import LOOPBACK, Lab, wait_for

ROOT = HERE.parent.parent
NAME = "shop"
# Before the first fault, so that the retries' budget knows the traffic; and after the last, so that all is answered.
WARM, CALM = 1.0, 1.5

# name -> (workers, what the endpoints speak, whether each has a sidecar)
PARTS = {
    "http1": (4, "http1", False),
    "one-worker": (1, "http1", False),
    "http2": (4, "http2", False),
    "two-hops": (4, "http1", True),
}

# Parts of another kind.
OTHERS = {
    "limits": limits.run,
    "rotation": lambda chosen: rotation.run(chosen, "http1"),
    "rotation-http2": lambda chosen: rotation.run(chosen, "http2"),
}


def options():
    parser = argparse.ArgumentParser(prog="tests/faults/run", description=__doc__)
    parser.add_argument("--binary", type=pathlib.Path, help="the proxy (default: target/release, then target/debug)")
    parser.add_argument("--seconds", type=float, default=12, help="of load for each part")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the faults")
    parser.add_argument("--endpoints", type=int, default=6)
    parser.add_argument("--rate", type=int, default=500, help="requests a second (default: %(default)s)")
    parser.add_argument("--settle", type=float, default=endpoints.SETTLES, metavar="SECONDS",
                        help="how long after its fault an endpoint still counts as ill (default: %(default)s)")
    parser.add_argument("--only", choices=[*PARTS, *OTHERS], help="this part alone")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a part that failed")
    parser.add_argument("--no-skips", action="store_true", default=os.environ.get("CI") == "true",
                        help="a skipped fault is a failure (the default where CI=true)")
    chosen = parser.parse_args()
    built = [ROOT / "target" / kind / "outrigger" for kind in ("release", "debug")]
    places = [chosen.binary] if chosen.binary else built
    chosen.binary = next((place.resolve() for place in places if place.is_file()), None)
    if not chosen.binary:
        parser.error(f"no proxy at {', '.join(map(str, places))}: build it (cargo build) or name it by --binary")
    return chosen


def peer(speaks, at, two_hops):
    """What the caller's sidecar is told of the endpoints."""
    conditions = ["connect-failure", "reset-before-request", "refused-stream", "reset"]
    if two_hops:
        # What an endpoint's own sidecar says of its app comes as a 502, 503 or 504.
        conditions.append("gateway-error")
    return {"static": at, "protocol": speaks, "timeout": {"attempt": "300ms"},
            "retry": {"attempts": 3, "on": conditions}}


def part(name, chosen, net_class):
    """Load and faults for some seconds; what was wrong, line by line."""
    workers, speaks, two_hops = PARTS[name]
    lab = Lab(f"faults-{name}", chosen.binary, False)
    wrong = ["it broke off"]
    try:
        net = net_class(lab, chosen.endpoints)
        them = endpoints.start(lab, net, speaks, two_hops)
        door = lab.port()
        sidecar = lab.sidecar("caller", {
            "workers": workers, "outbound": {"listen": f"{LOOPBACK}:{door}", "allow": ["10.77.0.0/16", "127.0.0.0/8"]},
            "peers": {NAME: peer("http1" if two_hops else speaks, [one.address for one in them], two_hops)}})
        answers = lab.path("answers.jsonl")
        argv = ["node", HERE / "load.mjs", LOOPBACK, door, NAME, chosen.rate, chosen.seconds, answers]
        load = lab.start("load", argv)
        begin = time.monotonic()
        time.sleep(WARM)
        faults = endpoints.Faults(them, net, random.Random(f"{chosen.seed} {name}"), begin, chosen.settle)
        faults.run(until=begin + chosen.seconds - CALM)
        wait_for(lambda: not load.alive(), "all requests are over", within=CALM + 20)
        pace = json.loads(load.output().splitlines()[-1])
        lab.path("faults.log").write_text("\n".join(faults.story) + "\n")
        lab.path("state.json").write_text(str(sidecar.get("/state")))
        for one in them:
            one.stop()
        sidecar.stop()  # its log is whole now
        told, wrong = ledger.judge(them, answers, sidecar.output(), pace, WARM)
        kinds = ", ".join(f"{many} {kind}" for kind, many in sorted(faults.counts.items()))
        print(f"    {told}\n    faults: {kinds}")
    finally:
        if wrong and chosen.keep:
            print(f"    kept: {lab.folder}")
        lab.stop(keep=bool(wrong) and chosen.keep)
    return wrong


def main():
    chosen = options()
    why = network.enter()
    skipped = why is not None
    if skipped:
        print(f"SKIPPED: black holes ({why}); everything else runs on loopback")
    print(f"seed {chosen.seed}, {chosen.seconds:g} s of {chosen.rate}/s for each part, {chosen.endpoints} endpoints, "
          f"{chosen.binary}")
    failed = ["black holes were skipped"] if skipped and chosen.no_skips else []
    for name in [chosen.only] if chosen.only else [*PARTS, *OTHERS]:
        print(f"--- {name}")
        net_class = network.Loopback if skipped else network.Namespaces
        wrong = OTHERS[name](chosen) if name in OTHERS else part(name, chosen, net_class)
        print("\n".join(f"    WRONG {line}" for line in wrong[:20]) or "    well")
        if len(wrong) > 20:
            print(f"    and {len(wrong) - 20} more")
        failed += wrong
    print(f"{'FAILED' if failed else 'passed'}: seed {chosen.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

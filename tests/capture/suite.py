"""The command line, and the cases one after the other, each in namespaces of its own."""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import behind
import behind_edges
import force
import lab
import past
import traffic
import trouble

ROOT = HERE.parent.parent
CASES = {case.__name__.replace("_", "-"): case for case in (*force.CASES, *traffic.CASES, *trouble.CASES, *past.CASES,
                                                             *behind.CASES, *behind_edges.CASES)}


def options():
    parser = argparse.ArgumentParser(prog="tests/capture/run", description=__doc__)
    parser.add_argument("--binary", type=pathlib.Path, help="the proxy (default: target/release, then target/debug)")
    parser.add_argument("--only", metavar="NAME", help="cases whose name has this in it")
    parser.add_argument("--kills", type=int, default=50, help="how often it is killed at random")
    parser.add_argument("--starts", type=int, default=100, help="how often an app is started, in each way of capturing it")
    parser.add_argument("--stops", type=int, default=100, help="how often it is ended under load")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of when")
    parser.add_argument("--no-skips", action="store_true", default=os.environ.get("CI") == "true",
                        help="a skipped case is a failure (the default where CI=true)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    built = [ROOT / "target" / kind / "outrigger" for kind in ("release", "debug")]
    places = [chosen.binary] if chosen.binary else built
    chosen.binary = next((place.resolve() for place in places if place.is_file()), None)
    if not chosen.binary:
        parser.error(f"no proxy at {', '.join(map(str, places))}: build it (cargo build) or name it by --binary")
    return chosen


def inside(chosen):
    """One case; its exit code is 0, 1 for a failure or 77 for a skip, with the reason printed."""
    here = lab.Lab(chosen.binary)
    try:
        here.network()
        CASES[chosen.case](here, chosen)
        return 0
    except lab.Skip as why:
        print(why)
        return 77
    except AssertionError as wrong:
        print(wrong)
        return 1
    finally:
        here.close()


def main():
    chosen = options()
    if chosen.case and os.environ.get(lab.INSIDE):
        sys.exit(inside(chosen))
    if chosen.case:
        # It only comes back where there are no namespaces to be had.
        print(lab.enter())
        sys.exit(77)
    names = [name for name in CASES if not chosen.only or chosen.only in name]
    if not names:
        sys.exit(f"no case has `{chosen.only}` in its name; there are {', '.join(CASES)}")
    counts = {"ok": 0, "skip": 0, "FAIL": 0}
    print(f"seed {chosen.seed}, {chosen.binary}")
    for name in names:
        begin = time.monotonic()
        argv = [sys.executable, __file__, "--case", name, "--binary", chosen.binary, "--kills", chosen.kills,
                "--starts", chosen.starts, "--stops", chosen.stops, "--seed", chosen.seed]
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
        said = (done.stdout + done.stderr).strip()
        word = {0: "ok", 77: "skip"}.get(done.returncode, "FAIL")
        counts[word] += 1
        print(f"{word:4} {name} ({time.monotonic() - begin:.1f} s){': ' + said if said else ''}")
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    sys.exit(1 if counts["FAIL"] or (counts["skip"] and chosen.no_skips) else 0)


main()

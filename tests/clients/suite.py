"""The suite's command line: which areas and cases, with which binary, direct or through sidecars."""

import argparse
import os
import pathlib
import signal
import sys

import cases

ROOT = cases.HERE.parent.parent


def options():
    parser = argparse.ArgumentParser(prog="tests/clients/run", description=__doc__)
    parser.add_argument("--direct", action="store_true", help="without sidecars: proves the suite itself")
    parser.add_argument("--only", metavar="NAME", help="only cases whose AREA/CASE contains NAME")
    parser.add_argument("--binary", metavar="PATH", help="the proxy (default: target/release, then target/debug)")
    parser.add_argument("--no-skips", action="store_true", default=os.environ.get("CI") == "true",
                        help="a skipped case is a failure (the default where CI=true)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of areas that failed")
    parser.add_argument("--quiet", action="store_true", help="no logs after a failure")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    return parser.parse_args()


def binary(given):
    """The proxy to test; it must exist."""
    places = [given] if given else [ROOT / "target" / kind / "outrigger" for kind in ("release", "debug")]
    for place in map(pathlib.Path, places):
        if place.is_file():
            return place.resolve()
    sys.exit(f"no proxy at {', '.join(map(str, places))}: build it (cargo build --release) or name it by --binary")


def main():
    chosen = options()
    chosen.binary = None if chosen.direct or chosen.list else binary(chosen.binary)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = cases.Report(verbose=not chosen.quiet)
    for area in cases.areas():
        if chosen.list:
            print("\n".join(f"{area.name}/{case[0]}" for case in area.cases))
        else:
            cases.run_area(area, chosen, report)
    return 0 if chosen.list else report.close(chosen.no_skips)


if __name__ == "__main__":
    sys.exit(main())

"""What an area of the suite is, and how its cases are run direct and through the sidecars and compared."""

import importlib
import pathlib
import signal
import time
import traceback

from lab import HERE, Lab, Missing


class Area:
    """A named set of cases with the servers they share. `world` starts those and returns the meshes by name."""

    def __init__(self, name):
        self.name, self.cases, self.world = name, [], None

    def setup(self, function):
        self.world = function
        return function

    def case(self, mesh, only=None, within=60, name=None):
        """Registers a case. It is called with a Place and returns what it observed: equal direct and through.

        `only` is "through" where there is nothing to compare with; `within` bounds each run in seconds.
        """
        def register(function):
            self.cases.append((name or function.__name__.replace("_", "-").strip("-"), mesh, only, within, function))
            return function
        return register


def areas():
    """Every module of areas/ that defines `area`, in the order of their names."""
    for file in sorted(pathlib.Path(HERE / "areas").glob("[a-z]*.py")):
        yield importlib.import_module(f"areas.{file.stem}").area


class Clock:
    """A bound on a piece of code in the main thread."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __enter__(self):
        def ring(*_):
            raise TimeoutError(f"the case took more than {self.seconds} s")
        signal.signal(signal.SIGALRM, ring)
        signal.alarm(self.seconds)

    def __exit__(self, *_):
        signal.alarm(0)


class Report:
    """One line per case, the counts, and the logs of what failed."""

    def __init__(self, verbose):
        self.passed = self.failed = self.skipped = 0
        self.verbose = verbose

    def ok(self, name, seconds):
        self.passed += 1
        print(f"ok   {name} ({seconds:.1f} s)", flush=True)

    def fail(self, name, why, lab=None):
        self.failed += 1
        print(f"FAIL {name}", flush=True)
        for line in str(why).strip().splitlines():
            print(f"     {line}", flush=True)
        if lab and self.verbose:
            for line in lab.logs():
                print(f"     | {line}", flush=True)

    def skip(self, name, why):
        self.skipped += 1
        print(f"SKIP {name}: {why}", flush=True)

    def close(self, no_skips):
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped", flush=True)
        if no_skips and self.skipped:
            print("a skipped case counts as a failure here (CI=true or --no-skips)", flush=True)
        return 1 if self.failed or (no_skips and self.skipped) or not self.passed else 0


def short(error):
    """The error and the line of this suite that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(HERE) in f.filename and ".venv" not in f.filename]
    at = f" at {pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno} `{frames[-1].line}`" if frames else ""
    return f"{type(error).__name__}: {str(error)[:1500]}{at}"


def run_case(case, meshes, direct_only):
    """Runs one case both ways. Returns None when equal, else what is wrong."""
    _, mesh, only, within, function = case
    seen = {}
    for way in ("direct", "through"):
        if (way == "direct" and only == "through") or (way == "through" and direct_only):
            continue
        try:
            with Clock(within):
                seen[way] = function(getattr(meshes[mesh], way))
        except Missing:
            raise
        except (Exception, SystemExit) as error:  # a case may die of anything; the others go on
            return f"{way}: {short(error)}"
    if len(seen) == 2 and seen["direct"] != seen["through"]:
        return "\n".join(apart(repr(seen["direct"]), repr(seen["through"])))
    return None


def apart(direct, through, room=700):
    """The two observations from a little before the place where they part."""
    same = next((n for n, (a, b) in enumerate(zip(direct, through)) if a != b), min(len(direct), len(through)))
    begin = max(0, same - 200)
    for name, text in (("direct ", direct), ("through", through)):
        yield f"{name}: {'…' if begin else ''}{text[begin:begin + room]}{'…' if len(text) > begin + room else ''}"


def run_area(area, options, report):
    """Starts the area's world, runs its cases and ends the world."""
    wanted = [c for c in area.cases if not options.only or options.only in f"{area.name}/{c[0]}"]
    if options.direct:
        wanted = [c for c in wanted if c[2] != "through"]
    if not wanted:
        return
    lab = Lab(area.name, options.binary, options.direct)
    failures = report.failed
    try:
        with Clock(120):
            meshes = area.world(lab)
    except Missing as why:
        for case in wanted:
            report.skip(f"{area.name}/{case[0]}", why)
        lab.stop()
        return
    except Exception as error:
        report.fail(f"{area.name}/*", f"the area did not start: {short(error)}", lab)
        lab.stop()
        return
    for case in wanted:
        name, begin = f"{area.name}/{case[0]}", time.monotonic()
        try:
            wrong = run_case(case, meshes, options.direct)
        except Missing as why:
            report.skip(name, why)
            continue
        if wrong:
            report.fail(name, wrong, lab)
        else:
            report.ok(name, time.monotonic() - begin)
    for process in lab.running:
        if process.name.endswith(("-in", "-out")) and ("panicked at" in process.output() or not process.alive()):
            report.fail(f"{area.name}/{process.name}", f"the sidecar panicked or ended: {process.output()[-2000:]}")
    lab.stop(keep=options.keep and report.failed > failures)

"""Limits, exact to the unit: a server that answers nobody until it is told to counts what comes to it meanwhile."""

import collections
import json
import pathlib
import subprocess

import endpoints
import ledger
import network
from lab import LOOPBACK, Lab, wait_for

HERE = pathlib.Path(__file__).resolve().parent
FLOOD, ROUNDS = 120, 8

# name -> (the peer's breaker, answers of 200 in each round, the most requests and connections that the server may see)
CASES = {
    "in-flight": ({"in-flight": 23}, 23, 23, 23),
    "connections, and none waits": ({"connections": 17, "pending": 0}, 17, 17, 17),
    "connections and pending": ({"connections": 9, "pending": 14}, 23, 9, 9),
    "in-flight of an endpoint": ({"endpoint": {"in-flight": 11}}, 11, 11, 11),
}


def run(chosen):
    """Each case, flooded several times over; what was wrong."""
    wrong = []
    for name, (breaker, taken, requests, connections) in CASES.items():
        lab = Lab("faults-limits", chosen.binary, False)
        try:
            found = case(lab, name, breaker, taken, requests, connections)
        finally:
            lab.stop()
        wrong += found
        print(f"    {name}: {ROUNDS} floods of {FLOOD} requests, {'exact' if not found else 'NOT exact'}")
    return wrong


def case(lab, name, breaker, taken, requests, connections):
    one = endpoints.Endpoint(lab, network.Loopback(lab, 1), 0, "http1", False)
    wait_for(one.is_up, "the endpoint is up")
    door = lab.port()
    sidecar = lab.sidecar("caller", {
        "workers": 4, "outbound": {"listen": f"{LOOPBACK}:{door}", "allow": ["127.0.0.0/8"]},
        "peers": {"shop": {"static": [one.address], "retry": "off", "breaker": breaker}}})
    wrong = []
    for number in range(ROUNDS):
        serial = one.order(hold=True)
        wait_for(lambda: one.noted(f"O {serial}"), "the endpoint holds its answers")
        out = lab.path(f"answers-{number}.jsonl")
        # A rate so high that all of them are begun at once.
        argv = ["node", HERE / "load.mjs", LOOPBACK, str(door), "shop", str(FLOOD * 1000), "0.001", out]
        flood = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            # Who is over the limit is told at once; whoever is not is held.
            wait_for(lambda: len(out.read_text().splitlines()) == FLOOD - taken if out.exists() else False,
                     f"{name}: {FLOOD - taken} refusals", within=15)
        except TimeoutError as error:
            wrong.append(f"{error}: there were {len(out.read_text().splitlines())}")
        one.order()
        # Who waited for a connection comes after those that were held.
        flood.wait(20)
        records = [json.loads(line) for line in out.read_text().splitlines()]
        ends = collections.Counter(ledger.reason(record) or record.get("status") for record in records)
        if ends != {200: taken, "limit_reached": FLOOD - taken}:
            wrong.append(f"{name}: {dict(ends)}, not {taken} answers and {FLOOD - taken} refusals")
    most = {"requests": 0, "connections": 0}
    for line in one.ledger.read_text().splitlines():
        if line.startswith("M "):
            _, what, many = line.split()
            most[what] = max(most[what], int(many))
    if most != {"requests": requests, "connections": connections}:
        wrong.append(f"{name}: the server saw {most}, not {requests} requests and {connections} connections")
    sidecar.stop()
    one.stop()
    return wrong

"""The judgement: what the callers were told beside what the endpoints executed."""

import collections
import json
import re

# A client that is later than this with its requests has not made the load that was asked for.
BEHIND_MS = 1500
# Where nine of ten requests take longer than this although all is well, endpoints will look frozen that only wait for a
# processor.
WELL_MS = 60


def judge(them, answers, log, pace, warm):
    """One line of figures, and what is wrong, line by line."""
    executed, torn = collections.Counter(), set()
    for one in them:
        for line in one.ledger.read_text().splitlines():
            what, *rest = line.split()
            if what == "E":
                executed[rest[-1]] += 1
            elif what == "T":
                torn.add(rest[-1])
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    lines = access_lines(log)
    wrong = [f"{len(records)} requests were over and {pace['sent']} were sent"] if len(records) != pace["sent"] else []
    wrong += [f"{one.name} says: {one.app.output()[-500:]}" for one in them if one.app.output().strip()]
    if pace["behind_ms"] > BEHIND_MS:
        wrong.append(f"the client was up to {pace['behind_ms']} ms late: this machine cannot make the load")
    # The very first ones open connections and start interpreters.
    first = sorted(record["ms"] for record in records if warm * 300 < record["at"] < warm * 900)
    if first[len(first) * 9 // 10] > WELL_MS:
        wrong.append(f"before the first fault the slowest tenth took {first[len(first) * 9 // 10]} ms or more: this "
                     "machine cannot carry the load (a release build, a lower --rate, no other work beside it)")
    count, reasons = collections.Counter(), collections.Counter()
    for record in records:
        kind, words = verdict(record, executed[record["id"]], record["id"] in torn)
        count[kind] += 1
        if kind == "answered" and '"reason"' in lines.get(record["id"], ""):
            words = words or "answered, and logged as failed"
        if kind == "reason":
            reasons[reason(record)] += 1
        if words:
            line = lines.get(record["id"], "no line")
            wrong.append(f"{record['id']} at {record['at']} ms: {words}; {brief(record)}; {line}")
    doubled = [id for id, times in executed.items() if id.startswith("P") and times > 1]
    wrong += [f"{id} was executed {executed[id]} times; {lines.get(id, 'no line')}" for id in doubled]
    slowest = max(record["ms"] for record in records if not record.get("torn"))
    gets = sum(record["method"] == "GET" for record in records)
    told = (f"{gets} GETs, {len(records) - gets} POSTs: {count['failed get']} GETs failed, "
            f"{len(doubled)} POSTs executed twice, {count['silent post']} POSTs without one answer; "
            f"{count['reason']} POSTs got a reason ({', '.join(f'{many} {why}' for why, many in reasons.most_common()) or 'none'}); "
            f"{count['torn']} answers torn in the body by their endpoint; GETs executed again: "
            f"{sum(times - 1 for id, times in executed.items() if id.startswith('G') and times > 1)}; "
            f"slowest {slowest} ms, client late by {pace['behind_ms']} ms at most")
    return told, wrong


def verdict(record, times, torn):
    """What sort of end a request had, and what is wrong with it."""
    # What was torn may break before its head was sent on as well.
    broken = record.get("torn") or record.get("error")
    whole = record.get("status") == 200 and record.get("body") == record["id"]
    if record["method"] == "GET":
        if whole:
            return "answered", None if times else "answered and never executed"
        if torn and broken:
            return "torn", None
        return "failed get", "a GET failed"
    if whole:
        return "answered", None if times == 1 else f"answered 200 and executed {times} times"
    if torn and broken:
        return "torn", None
    if record["answers"] == 1 and reason(record) and not record.get("torn"):
        return "reason", None
    return "silent post", "neither a result nor a reason"


def reason(record):
    """The reason of an answer that a sidecar invented, or None."""
    found = re.search(r"\breason=(\w+)", record.get("why") or "")
    return found and found[1]


def brief(record):
    keys = ("status", "why", "torn", "error", "ms")
    return " ".join(f"{key}={record[key]}" for key in keys if record.get(key) is not None)


def access_lines(log):
    """The access line of each id, as text."""
    found = {}
    for line in log.splitlines():
        if hit := re.search(r'"path":"/([GP]\d+)', line):
            found[hit[1]] = line
    return found

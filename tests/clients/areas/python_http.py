"""httpx and requests: header case and order, streaming both ways, HTTP/2, server-sent events, cookies, many threads."""

import concurrent.futures
import http.client
import json

import httpx
import requests

from areas.curl import end_to_end
from cases import Area

area = Area("python-http")


@area.setup
def world(lab):
    return {"web": lab.mesh("web", lab.serve("web.py")), "both": lab.mesh("both", lab.serve("both.mjs"))}


def base(at):
    return f"http://{at.address}"


def blocks(count=64):
    """A body whose length the client does not know before."""
    for number in range(count):
        yield bytes([number]) * 4096


@area.case("web")
def requests_get(at):
    answer = requests.get(base(at) + "/echo?a=1&b=two%20words", timeout=20, headers={
        "Host": at.name, "X-Zeta": "first", "x-alpha": "second", "X-MIXED-case": "third", "Cookie": "k=v"})
    seen = answer.json()
    names = [n for n, _ in end_to_end(seen["fields"])]
    assert "X-MIXED-case" in names and "x-alpha" in names, names
    return answer.status_code, seen["target"], end_to_end(seen["fields"]), sorted(answer.cookies.items())


@area.case("web")
def requests_streams_up(at):
    seen = requests.post(base(at) + "/echo", data=blocks(), headers={"Host": at.name}, timeout=20).json()
    assert seen["size"] == 64 * 4096
    return seen["size"], seen["sha256"]


@area.case("web")
def requests_streams_down(at):
    with requests.get(base(at) + "/chunked", headers={"Host": at.name}, stream=True, timeout=20) as answer:
        return answer.headers.get("transfer-encoding"), b"".join(answer.iter_content(5)), answer.raw.version


@area.case("web")
def httpx_get(at):
    with httpx.Client(timeout=20, trust_env=False) as client:
        seen = client.get(base(at) + "/echo", headers=[("Host", at.name), ("X-Second", "b"), ("X-First", "a"),
                                                       ("X-Second", "c")])
    assert ("X-MiXeD-Case", "Kept") in [(n.decode(), v.decode()) for n, v in seen.headers.raw]
    return end_to_end(seen.json()["fields"]), seen.headers.get_list("set-cookie")


@area.case("web")
def httpx_streams_both_ways(at):
    with httpx.Client(timeout=20, trust_env=False) as client:
        up = client.post(base(at) + "/echo", content=blocks(), headers={"Host": at.name}).json()
        with client.stream("GET", base(at) + "/until-close", headers={"Host": at.name}) as down:
            return up["size"], up["sha256"], sum(len(block) for block in down.iter_bytes())


@area.case("both")
def httpx_over_http_2(at):
    with httpx.Client(timeout=20, http1=False, http2=True, trust_env=False) as client:
        first = client.post(base(at) + "/echo?x=1", content=b"y" * 300000, headers={"Host": at.name, "Cookie": "a=1; b=2"})
        rest = [client.get(base(at) + "/hello", headers={"Host": at.name}).text for _ in range(20)]
    assert first.http_version == "HTTP/2" and set(rest) == {"x" * 99 + "\n"}
    return first.json()


def read_events(at, identity, count=4):
    """Reads events one by one; the next is written only when the one before has arrived, so nothing may be held back."""
    seen = []
    with httpx.Client(timeout=20, trust_env=False) as client:
        def tick():
            client.get(f"{base(at)}/tick?id={identity}", headers={"Host": at.name}).raise_for_status()
        with client.stream("GET", f"{base(at)}/events?id={identity}&n={count}", headers={"Host": at.name}) as answer:
            kind = answer.headers["content-type"]
            tick()
            for line in answer.iter_lines():
                seen.append(line)
                if line == "" and len(seen) < 4 * count:
                    tick()
    return kind, seen


@area.case("web")
def server_sent_events_arrive_one_by_one(at):
    kind, seen = read_events(at, f"sse-{at.direct}")
    assert seen[-2] == "data: 3 squared is 9", seen
    return kind, seen


@area.case("web", only="through")
def the_end_of_a_caller_ends_the_stream(at):
    # 40 callers open a stream of events and go away: the sidecars hold nothing for them afterwards
    for number in range(40):
        with httpx.Client(timeout=20, trust_env=False) as client:
            with client.stream("GET", f"{base(at)}/events?id=gone-{number}&n=2", headers={"Host": at.name}) as answer:
                assert answer.status_code == 200
    assert requests.get(base(at) + "/hello", headers={"Host": at.name}, timeout=20).status_code == 200


@area.case("web")
def cut_answers_raise(at):
    seen = []
    for get in (lambda url, h: requests.get(url, headers=h, timeout=20), lambda url, h: httpx.get(url, headers=h, trust_env=False)):
        try:
            get(base(at) + "/cut", {"Host": at.name})
            seen.append("whole")
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError, httpx.RemoteProtocolError):
            seen.append("cut")
    assert seen == ["cut", "cut"], seen
    return seen


@area.case("web")
def the_standard_library_over_one_connection(at):
    connection = http.client.HTTPConnection(at.host, at.port, timeout=20)
    seen = []
    for method, path, body in (("GET", "/hello", None), ("POST", "/echo", b"z" * 70000), ("HEAD", "/hello", None),
                               ("GET", "/status/304", None), ("DELETE", "/echo", None), ("GET", "/trailers", None)):
        connection.request(method, path, body, {"Host": at.name})
        answer = connection.getresponse()
        content = answer.read()
        seen.append((answer.status, json.loads(content)["size"] if path == "/echo" else content))
    connection.close()
    return seen


@area.case("web")
def sixteen_threads(at):
    def one(number):
        with requests.Session() as session:
            return [session.post(base(at) + "/echo", data=str(number * 100 + turn) * 50, headers={"Host": at.name},
                                 timeout=30).json()["sha256"] for turn in range(25)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, range(16)))

"""grpcio: the four shapes, metadata, 4 MiB messages, statuses in trailers and trailers-only, deadline, cancellation."""

import contextlib
import queue

import grpc

from cases import Area
from lab import wait_for

area = Area("grpc")


@area.setup
def world(lab):
    app = lab.serve("grpc_echo.py")
    dead = lab.port()
    return {"echo": lab.mesh("echo", app), "declared": lab.mesh("declared", app, peer={"protocol": "http2"},
                                                                 inbound={"protocol": "http2"}),
            "dead": lab.mesh("dead", dead)}


@contextlib.contextmanager
def channel(at):
    # a channel of its own: grpcio shares subchannels between channels with equal arguments
    options = [("grpc.default_authority", at.name), ("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0),
               ("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(at.address, options=options) as opened:
        yield opened


def unary(opened, method, payload, **options):
    return opened.unary_unary(f"/t.Echo/{method}")(payload, timeout=options.pop("timeout", 20), **options)


@area.case("echo")
def unary_calls(at):
    with channel(at) as opened:
        for size in (0, 1, 1000, 65536):
            assert unary(opened, "Unary", b"u" * size) == b"u" * size


@area.case("declared")
def unary_over_a_declared_protocol(at):
    with channel(at) as opened:
        return unary(opened, "Unary", b"declared")


@area.case("echo")
def client_stream(at):
    with channel(at) as opened:
        return opened.stream_unary("/t.Echo/ClientStream")(iter([b"c" * n for n in range(300)]), timeout=20)


@area.case("echo")
def server_stream(at):
    with channel(at) as opened:
        answers = list(opened.unary_stream("/t.Echo/ServerStream")(b"1000", timeout=20))
    assert answers[999] == b"999" * 50
    return len(answers)


@area.case("echo")
def bidi_stream_one_by_one(at):
    """Each message is sent only when the one before came back: nothing may be held back."""
    with channel(at) as opened:
        out = queue.SimpleQueue()
        call = opened.stream_stream("/t.Echo/Bidi")(iter(out.get, None), timeout=20)
        seen = []
        for number in range(50):
            out.put(str(number).encode())
            seen.append(next(call))
        out.put(None)
        assert list(call) == []
        return seen, call.code().name


@area.case("echo")
def small_messages_on_a_long_stream(at):
    """20 000 messages of few bytes: h2's guard against small DATA frames must not end the connection."""
    with channel(at) as opened:
        call = opened.stream_stream("/t.Echo/Bidi")((b"%d" % n for n in range(20000)), timeout=50)
        return sum(1 for _ in call), call.code().name


@area.case("echo")
def four_mebibyte_messages(at):
    with channel(at) as opened:
        payload = bytes(range(256)) * (4 << 12)
        assert unary(opened, "Unary", payload) == payload
        call = opened.stream_stream("/t.Echo/Bidi")(iter([payload] * 4), timeout=30)
        assert [m == b"re: " + payload for m in call] == [True] * 4


@area.case("echo")
def metadata_of_all_kinds(at):
    with channel(at) as opened:
        answer, call = opened.unary_unary("/t.Echo/Metadata").with_call(b"", timeout=20, metadata=(
            ("x-text", "plain, with comma"), ("x-many", "1"), ("x-many", "2"), ("x-blob-bin", bytes(range(255, -1, -1)))))
        def own(pairs):
            return sorted((k, v) for k, v in pairs if k.startswith("x-") and not k.startswith("x-outrigger"))
        arrived = eval(answer)  # a repr made by our own server
        arrived = [p for p in arrived if p[0] in ("x-text", "x-many", "x-blob-bin")]
        assert len(arrived) == 4, arrived
        return arrived, own(call.initial_metadata()), own(call.trailing_metadata())


def outcome(call):
    """Code, details and own trailing metadata of a call that fails."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details(), [p for p in error.trailing_metadata() if p[0] == "x-reason"]
    raise AssertionError("the call went well")


@area.case("echo")
def status_in_trailers_only_answers(at):
    seen = []
    with channel(at) as opened:
        for code in ("CANCELLED", "NOT_FOUND", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNAUTHENTICATED",
                     "INTERNAL"):
            seen.append(outcome(lambda code=code: unary(opened, "Status", code.encode())))
            assert seen[-1][0] == code and seen[-1][1].endswith("100% ünïcode"), seen
        seen.append(outcome(lambda: unary(opened, "NoSuchMethod", b"")))
    assert seen[-1][0] == "UNIMPLEMENTED", seen
    return seen


@area.case("echo")
def status_in_trailers_after_messages(at):
    with channel(at) as opened:
        call, seen = opened.unary_stream("/t.Echo/Late")(b"", timeout=20), []
        failed = outcome(lambda: seen.extend(call))
        assert failed[0] == "DATA_LOSS"
        return list(seen), failed


def hang(at, name):
    """Opens the call that never ends, and a way to ask the server how it went."""
    opened = grpc.insecure_channel(at.address, options=[("grpc.default_authority", at.name), ("grpc.enable_http_proxy", 0),
                                                        ("grpc.use_local_subchannel_pool", 1)])
    return opened, lambda: unary(opened, "Ended", name) == b"ended"


@area.case("echo")
def deadline(at):
    name = f"deadline-{at.direct}".encode()
    opened, ended = hang(at, name)
    with opened:
        call, seen = opened.unary_stream("/t.Echo/Hang")(name, timeout=0.7), []
        code = outcome(lambda: [seen.append(m) for m in call])[0]
        wait_for(ended, "the server was told", 10)
        assert code == "DEADLINE_EXCEEDED", code
        return code, seen


@area.case("echo")
def cancellation(at):
    name = f"cancel-{at.direct}".encode()
    opened, ended = hang(at, name)
    with opened:
        call = opened.unary_stream("/t.Echo/Hang")(name, timeout=30)
        first = next(call)
        assert unary(opened, "Ended", name) == b"running"
        call.cancel()
        wait_for(ended, "the server was told", 10)
        return first, call.code().name, unary(opened, "Unary", b"the channel lives")


@area.case("echo")
def hundred_calls_at_once(at):
    with channel(at) as opened:
        calls = [opened.unary_unary("/t.Echo/Unary").future(b"%d" % n * 100, timeout=30) for n in range(100)]
        return [call.result()[:2] for call in calls]


@area.case("dead")
def nobody_listens(at):
    """Direct, grpcio itself finds nobody; through the sidecars the answer is trailers-only with the same code."""
    with channel(at) as opened:
        code, details, _ = outcome(lambda: unary(opened, "Unary", b""))
    assert code == "UNAVAILABLE", (code, details)
    assert at.direct or "connect_refused" in details, details
    return code

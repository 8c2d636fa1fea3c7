"""A gRPC server by grpcio with the four shapes and what goes wrong: grpc_echo.py PORT.

Messages are plain bytes, so that no code generator is needed; the wire is gRPC's own.
"""

import concurrent.futures
import sys
import threading

import grpc

ENDS = {}


def unary(request, context):
    return request


def metadata(request, context):
    seen = [(k, v) for k, v in context.invocation_metadata() if k.startswith("x-")]
    context.send_initial_metadata((("x-first", "initial"), ("x-data-bin", b"\x00\x01\xfe\xff")))
    context.set_trailing_metadata((("x-last", "trailing"), ("x-tail-bin", bytes(range(256)))))
    return repr(sorted(seen)).encode()


def client_stream(requests, context):
    sizes = [len(r) for r in requests]
    return f"{len(sizes)} {sum(sizes)}".encode()


def server_stream(request, context):
    for number in range(int(request)):
        yield str(number).encode() * 50


def bidi(requests, context):
    for request in requests:
        yield b"re: " + request


def status(request, context):
    """Aborts with the asked code; as nothing was sent before, the answer is trailers only."""
    context.set_trailing_metadata((("x-reason", "asked"),))
    context.abort(getattr(grpc.StatusCode, request.decode()), f"asked for {request.decode()} 100% ünïcode")


def late(request, context):
    """Three messages, then an error in the trailers."""
    for number in range(3):
        yield str(number).encode()
    context.abort(grpc.StatusCode.DATA_LOSS, "after three")


def hang(request, context):
    """Answers once and then waits for its end, which /t.Echo/Ended tells."""
    name, over = request.decode(), threading.Event()
    context.add_callback(over.set)
    ENDS[name] = "running"
    yield b"started"
    over.wait(30)
    ENDS[name] = "ended"


def ended(request, context):
    return ENDS.get(request.decode(), "unknown").encode()


def main():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(64), options=[
        ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)])
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
        "Status": grpc.unary_unary_rpc_method_handler(status),
        "Ended": grpc.unary_unary_rpc_method_handler(ended),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Late": grpc.unary_stream_rpc_method_handler(late),
        "Hang": grpc.unary_stream_rpc_method_handler(hang),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Echo", methods),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()

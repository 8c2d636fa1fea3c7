"""A gRPC server by grpcio with `grpc.health.v1`: grpc_health.py PORT. /t.Health/Set says what it answers from then on.

Messages are plain bytes, so that no code generator is needed; the wire is gRPC's own.
"""

import concurrent.futures
import sys

import grpc

ANSWERS = {"UNKNOWN": b"", "SERVING": b"\x08\x01", "NOT_SERVING": b"\x08\x02"}
STATE = {"answer": "SERVING"}


def check(request, context):
    """`HealthCheckRequest` has one field, the name of a service."""
    if request != b"\x0a\x09shop.Cart":
        context.abort(grpc.StatusCode.NOT_FOUND, f"no such service in {request!r}")
    if STATE["answer"] not in ANSWERS:
        context.abort(getattr(grpc.StatusCode, STATE["answer"]), "as asked")
    return ANSWERS[STATE["answer"]]


def say(request, context):
    STATE["answer"] = request.decode()
    return b""


def main():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    health = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    control = {"Set": grpc.unary_unary_rpc_method_handler(say)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
                                     grpc.method_handlers_generic_handler("t.Health", control)))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()

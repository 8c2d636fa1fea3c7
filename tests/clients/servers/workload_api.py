"""A server of SPIFFE's Workload API on a Unix socket, by grpcio and the stubs that PyPI's `spiffe` made of the official proto.

What it gives stands in a JSON file, which is looked at all the time: each change is streamed to everyone who listens.
`{"svids": [{"id", "cert", "key", "roots"}], "federated": {DOMAIN: PEM}}` names files of PEM; `{"refuse": [CODE, TEXT]}`
ends every stream so, and `{}` says nothing.
"""

import base64
import concurrent.futures
import json
import pathlib
import re
import sys
import time

import grpc
from spiffe._proto import workload_pb2 as pb
from spiffe._proto import workload_pb2_grpc as service

BLOCK = re.compile(r"-----BEGIN [A-Z ]+-----(.*?)-----END", re.S)


def der(path):
    """Every block of a PEM file, one after the other."""
    return b"".join(base64.b64decode(block) for block in BLOCK.findall(pathlib.Path(path).read_text()))


def response(said):
    svids = [pb.X509SVID(spiffe_id=svid["id"], x509_svid=der(svid["cert"]), x509_svid_key=der(svid["key"]),
                         bundle=der(svid["roots"])) for svid in said["svids"]]
    return pb.X509SVIDResponse(svids=svids, federated_bundles={
        domain: der(file) for domain, file in said.get("federated", {}).items()})


class Agent(service.SpiffeWorkloadAPIServicer):
    def __init__(self, file):
        self.file = pathlib.Path(file)

    def FetchX509SVID(self, _, context):
        # SPIFFE_Workload_Endpoint, section 3: against requests forged through something that can be made to connect.
        if dict(context.invocation_metadata()).get("workload.spiffe.io") != "true":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        last = None
        while context.is_active():
            text = self.file.read_text()
            if text != last:
                last, said = text, json.loads(text)
                if "refuse" in said:
                    code, words = said["refuse"]
                    context.abort(grpc.StatusCode[code], words)
                if said:
                    yield response(said)
            time.sleep(0.02)


def main():
    socket, file = sys.argv[1:3]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    service.add_SpiffeWorkloadAPIServicer_to_server(Agent(file), server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


main()

"""A name server that answers SERVFAIL to everything and prints each name asked for: servfail.py PORT."""

import socket
import sys

with socket.create_server(("127.0.0.1", int(sys.argv[1]))), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.bind(("127.0.0.1", int(sys.argv[1])))
    while True:
        query, sender = line.recvfrom(4096)
        print("asked", flush=True)
        end = query.index(b"\0", 12) + 5
        line.sendto(query[:2] + b"\x81\x82" + b"\0\1\0\0\0\0\0\0" + query[12:end], sender)

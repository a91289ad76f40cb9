"""At the doors of services that listen on TCP, which no user is kept from: each asks for a credential."""
# ruff: noqa: T201 - a program that prints

import json
import socket
import ssl
import sys
import urllib.error
import urllib.request

import grpc

SECONDS = 20


def http(port):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/v1.0/metadata", timeout=SECONDS) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)


def wire(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary("/dapr.proto.runtime.v1.Dapr/GetMetadata")
        try:
            ask(b"", timeout=SECONDS)
        except grpc.RpcError as error:
            return error.code().name
    return "done"


def tls(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), SECONDS) as plain,
            context.wrap_socket(plain) as sock,
        ):
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            return "done" if sock.recv(64) else "closed"
    except ssl.SSLError:
        return "refused"
    except OSError as error:
        return type(error).__name__


if __name__ == "__main__":
    ports = json.loads(sys.argv[1])
    told = {
        "daprd": http(ports["daprd"]),
        "another": wire(ports["another"]),
        "gateway": tls(ports["gateway"]),
    }
    print("TOLD", json.dumps(told))

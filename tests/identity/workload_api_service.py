"""A SPIFFE Workload API on a unix socket: a real gRPC server that pushes what it is told to."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization
from spiffe._proto import workload_pb2, workload_pb2_grpc  # the messages that the package ships

from tests.identity.pki import Authority, Leaf


class Agent(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Answers with ``response`` first, and then with whatever is pushed."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix://{path}"
        self.response: Any = None
        self.error: grpc.StatusCode | None = None
        self.streams: list[queue.Queue[Any]] = []
        self._server: grpc.Server | None = None

    def start(self) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        for each in self.streams:
            each.put(None)
        if self._server is not None:
            self._server.stop(None).wait()
        self.streams.clear()

    def push(self, response: Any) -> None:
        self.response = response
        for each in self.streams:
            each.put(response)

    def FetchX509SVID(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if ("workload.spiffe.io", "true") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        if self.error is not None:
            context.abort(self.error, "no identity issued")
        pushed: queue.Queue[Any] = queue.Queue()
        self.streams.append(pushed)
        context.add_callback(lambda: pushed.put(None))
        if self.response is not None:
            yield self.response
        while (response := pushed.get()) is not None:
            yield response


def response_of(*leaves: Leaf, federated: tuple[Authority, ...] = ()) -> Any:
    """As an agent gives it: DER, one certificate after the other."""
    der, plain = serialization.Encoding.DER, serialization.NoEncryption()
    return workload_pb2.X509SVIDResponse(
        svids=[
            workload_pb2.X509SVID(
                spiffe_id="", x509_svid=b"".join(each.public_bytes(der) for each in leaf.chain),
                x509_svid_key=leaf.key.private_bytes(der, serialization.PrivateFormat.PKCS8, plain),
                bundle=b"".join(each.public_bytes(der) for each in leaf.authority.bundle.certificates),
            )
            for leaf in leaves
        ],
        federated_bundles={each.trust_domain: each.certificate.public_bytes(der) for each in federated},
    )

"""The calls of ``traffic`` over HTTP: one kind of httpx client, bare or with the library's transport; all else is equal."""

from __future__ import annotations

import importlib
import ssl
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilmesh.compare.traffic import Came, Job

_EXCEPTIONS = {
    "ConnectError": "connect failure", "ConnectTimeout": "connect failure", "ReadTimeout": "deadline", "WriteTimeout": "deadline",
    "PoolTimeout": "client's pool exhausted", "ReadError": "reset", "WriteError": "reset", "RemoteProtocolError": "reset",
}
#: What the library and Envoy say themselves is short; a page of somebody's service may hold any words.
_LOCAL_BODY_BYTES = 400
#: Whether an open circuit refused the call that this thread or task has just made: the answer is that of a reached limit,
#: for want of another word of Envoy's.
_circuit_open: ContextVar[bool] = ContextVar("circuit_open", default=False)


class Client:
    """``request`` gives the response, or (from an asynchronous client) its awaitable, and raises ``failure`` for want of one."""

    #: What is said where no service answers, besides Envoy's words.
    texts: tuple[tuple[str, str], ...] = ()

    def __init__(self, job: Job, meshes: list[Any]) -> None:
        library, _, style = job.client.partition("-")
        http = importlib.import_module(library)
        kind = "Async" if style else ""
        options = {
            "limits": http.Limits(max_connections=None, max_keepalive_connections=None), "trust_env": False,
            "http1": not job.http2, "http2": job.http2,
        }
        if meshes:
            adapter = importlib.import_module("resilmesh.http")
            transports = [getattr(adapter, f"{kind}Transport")(mesh, **options) for mesh in meshes]
            for mesh in meshes if job.watched else ():
                mesh.subscribe(_observe)
        else:
            made = getattr(http, f"{kind}HTTPTransport")
            transports = [made(verify=_by_hand(each), **options) for each in job.identities] or [made(**options)]
        self._clients = [getattr(http, f"{kind}Client")(transport=each, timeout=job.timeout, trust_env=False) for each in transports]
        self._targets = job.targets
        self._host = job.host
        self._signed = job.signed
        self.failure: type[Exception] = http.TransportError

    def request(self, number: int, method: str, path: str, name: str) -> Any:
        _circuit_open.set(False)
        url = self._targets[number % len(self._targets)] + path
        headers = {"host": self._host}
        if self._signed:
            headers["x-call"] = name
        return self._clients[number % len(self._clients)].request(method, url, headers=headers)

    def came(self, response: Any, error: Exception | None) -> Came:
        """What came of the last call of this thread or task."""
        if response is None:
            return 0, {}, "", _EXCEPTIONS.get(type(error).__name__, type(error).__name__)
        text = response.text if len(response.content) < _LOCAL_BODY_BYTES else ""
        return response.status_code, response.headers, text, "circuit open" if _circuit_open.get() else ""


def _by_hand(identity: str) -> ssl.SSLContext:
    """As one would write it without any policy: certificates of the authority are shown and verified, and nobody asks whose."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(f"{identity}/ca.crt")
    context.load_cert_chain(f"{identity}/tls.crt", f"{identity}/tls.key")
    return context


def _observe(event: Any) -> None:
    if event.name == "call_rejected" and event.detail["reason"] == "CircuitOpen":
        _circuit_open.set(True)

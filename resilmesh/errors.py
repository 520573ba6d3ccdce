"""Everything the library raises.

    ResilmeshError
      PolicyError            the policy is wrong              .diagnostics
      UnknownService         a name that the policy does not have
      Rejected               nothing was sent                 .service .route .retry_after
        CircuitOpen  ConcurrencyExceeded  RateLimited  NoHealthyEndpoint  Forbidden  TlsImpossible
      DeadlineExceeded       also a TimeoutError              .service .route .attempts
      InjectedFault          an abort on a guarded function   .service .route .status

A client's adapter raises subclasses that are also the client's own exceptions (an httpx ``CircuitOpen``
is an ``httpx.TransportError`` too), so handlers written for the client go on working.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from resilmesh.units import format_duration

if TYPE_CHECKING:
    from resilmesh.policy.codes import Diagnostic


class ResilmeshError(Exception):
    """Base of everything the library raises on purpose."""


class PolicyError(ResilmeshError):
    """A policy that cannot be used. ``diagnostics`` holds every mistake, in the order of the file."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__("\n".join(str(each) for each in self.diagnostics))

    def __reduce__(self) -> tuple[type[PolicyError], tuple[tuple[Diagnostic, ...]]]:
        return type(self), (self.diagnostics,)


class UnknownService(ResilmeshError, LookupError):
    """A service or route was named that the policy does not have."""


class CallError(ResilmeshError):
    """What a call can end in by the library's own decision."""

    #: The response that ``localReplies: RESPOND`` makes of this error, as Envoy would answer:
    #: status, body, Envoy response flag, Envoy response code details.
    reply: ClassVar[tuple[int, str, str, str]] = (503, "", "-", "")

    def __init__(
        self, message: str, *, service: str = "", route: str | None = None, retry_after: float | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message)
        self.service = service
        self.route = route
        #: Seconds after which another try may succeed; ``None`` where nothing is known.
        self.retry_after = retry_after
        #: Attempts that may have reached the service.
        self.attempts = attempts

    def __str__(self) -> str:
        # Put together when somebody reads it: an open circuit raises by the thousand.
        where = self.service if self.route is None else f"{self.service}/{self.route}"
        when = "" if self.retry_after is None else f"; retry after {format_duration(round(self.retry_after, 3))}"
        return f"{where}: {self.args[0]}{when}" if where else f"{self.args[0]}{when}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[CallError], args: tuple[str, ...], state: dict[str, object]) -> CallError:
    error = kind(*args)
    error.__dict__.update(state)
    return error


class Rejected(CallError):
    """Refused locally: nothing was sent for this call."""


_RESET = "upstream connect error or disconnect/reset before headers. reset reason: "


class CircuitOpen(Rejected):
    """The circuit breaker is open, or half-open with all of its probes out."""

    reply = (503, _RESET + "overflow", "UO", "upstream_reset_before_response_started{overflow}")


class ConcurrencyExceeded(Rejected):
    """The concurrency limit is reached and its queue is full, or the wait in the queue was too long."""

    reply = (503, _RESET + "overflow", "UO", "upstream_reset_before_response_started{overflow}")


class RateLimited(Rejected):
    """The rate limit has no token left. ``retry_after`` says when the next one is due."""

    reply = (429, "local_rate_limited", "RL", "local_rate_limited")


class NoHealthyEndpoint(Rejected):
    """Every endpoint of the service, or of the chosen subset, is ejected, or there is none."""

    reply = (503, "no healthy upstream", "UH", "no_healthy_upstream")


class Forbidden(Rejected):
    """``outbound: REGISTRY_ONLY``, and the host belongs to no service of the policy."""

    # Istio's BlackHoleCluster route answers 502 with no body; a bare Envoy has no counterpart.
    reply = (502, "", "-", "direct_response")


class TlsImpossible(Rejected):
    """The policy asks for TLS where it cannot be had. Nothing is sent in the clear in its place."""

    reply = (503, _RESET + "remote connection failure", "UF", "upstream_reset_before_response_started{remote_connection_failure}")


class DeadlineExceeded(CallError, TimeoutError):
    """The call's deadline passed. ``attempts`` says how many may have reached the service."""

    reply = (504, "upstream request timeout", "UT", "response_timeout")


class InjectedFault(CallError):
    """A policy's ``fault`` aborted a guarded function; a client gets a response with this status instead."""

    reply = (503, "fault filter abort", "FI", "fault_filter_abort")

    #: HTTP status of the abort, and its gRPC status where the policy names one.
    status: int = 503
    grpc_status: int | None = None

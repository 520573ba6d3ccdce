"""One HTTP request that is served, but for its waiting: what the middlewares of both kinds share.

    arrival      what the server knows of it
    enter        -> the caller, the path in its one form, the engine's call; or ``Refused``
    handler      the application is the call's one attempt
    responded    its status; ``done``: its end

Refused by the gate (400, 403) come before the limits (429, 503), as Envoy's filters do: who may not come in uses up nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import Token
from typing import TYPE_CHECKING, Any, NamedTuple

from resilmesh.drive.context import CALLER, DEADLINE, PASSED_ON, unset
from resilmesh.engine.call import Call
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import Answer, Verdict, of_status
from resilmesh.errors import InjectedFault
from resilmesh.identity.authz import InboundRequest
from resilmesh.identity.gate import Connection, Refused
from resilmesh.identity.paths import HostilePath, normalise
from resilmesh.identity.xfcc import HEADER, made_of

if TYPE_CHECKING:
    from resilmesh.engine.compile import Table
    from resilmesh.errors import CallError
    from resilmesh.mesh import Mesh

Headers = Sequence[tuple[str, str]]
#: What is answered to whom is not let in: Envoy's own words.
BODIES = {400: "", 403: "RBAC: access denied"}
#: What a call that is served passes on to those that it makes, unless they say something else (W3C Trace Context, W3C Baggage).
_PASSED_ON = ("traceparent", "tracestate", "baggage", "x-request-id")
#: The milliseconds that the caller will wait, by Envoy and by gRPC's clients.
_TIMEOUT = "x-envoy-expected-rq-timeout-ms"


class Arrival(NamedTuple):
    """A request as the server got it. Names of headers are in lower case."""

    method: str
    target: str
    headers: Headers
    connection: Connection


class Reply(NamedTuple):
    """What is answered in the application's place."""

    status: int
    body: str
    headers: Headers = ()


class Serving:
    """A request that was let in."""

    __slots__ = ("_clock", "_inside", "_responded", "_tokens", "call", "caller", "headers", "path")

    def __init__(self, mesh: Mesh, arrival: Arrival) -> None:
        """Raises ``Refused``."""
        table = mesh.table
        self._clock = clock = mesh.clock
        values = _values(arrival.headers)
        connection = arrival.connection
        _check(arrival, values)
        self.caller = table.gate.caller(connection, values("x-forwarded-for"), values(HEADER))
        try:
            #: What the application is to take for the path.
            self.path = normalise(arrival.target)
        except HostilePath as error:
            raise Refused(400, f"the path cannot be used: {error}") from None
        _authorize(mesh, table, arrival, self)
        #: What it is to take for the headers: of the caller's certificate it sees what is true, or nothing.
        self.headers = _headers(mesh, table, arrival, self)
        now = clock.monotonic()
        self._inside = min(DEADLINE.get(), now + _seconds(values(_TIMEOUT)))
        plan = table.inbound
        self.call = None if plan is None else Call(plan, deadline=self._inside)
        if self.call is not None and plan is not None and plan.by_value is not None:
            self.call.values = tuple(next(iter(values(name)), None) for name in plan.by_value.headers)
        self._responded = False
        self._tokens: tuple[Token[Any], ...] = ()

    # ------------------------------------------------------------------------------------------ the limits

    def refusal(self, call: Call) -> Reply:
        """The answer where the engine let nobody through."""
        error = call.take_error()
        if isinstance(error, InjectedFault):
            return Reply(error.status, error.reply[1])
        return _reply(error)

    def drilled(self, call: Call) -> Reply | None:
        """The answer of a fault that stands in the application's place; ``None``: there is none."""
        if call.injected is None:
            return None
        verdict, _ = of_status(call.injected)
        call.answered(self._clock.monotonic(), call.number, Answer(verdict, 0, call.injected, injected=True))
        return Reply(call.injected, InjectedFault.reply[1])

    # ----------------------------------------------------------------------------------------- the context

    def begin(self, arrival: Arrival) -> None:
        """What the application calls knows whom it is called for, by when it must be done, and of which trace it is part."""
        passed_on = tuple((name, value) for name, value in arrival.headers if name in _PASSED_ON)
        self._tokens = CALLER.set(self.caller), DEADLINE.set(self._inside), PASSED_ON.set(passed_on)

    def end(self) -> None:
        """Nothing of it stays for the next request that this thread, or this task, serves."""
        for token in self._tokens:
            unset(token)
        self._tokens = ()

    # --------------------------------------------------------------------------------------------- the end

    def responded(self, status: int) -> None:
        """The application gave its status."""
        if self.call is not None and not self._responded:
            self._responded = True
            verdict, _ = of_status(status)
            self.call.answered(self._clock.monotonic(), self.call.number, Answer(verdict, 0, status, complete=False))

    def done(self, error: BaseException | None) -> None:
        """It came to its end. ``error``: what it raised."""
        call, now = self.call, self._clock.monotonic()
        if call is None:
            return
        if error is not None and not isinstance(error, Exception):
            call.abandon(now)
        elif self._responded:
            call.ended(now, call.number, Verdict.SUCCESS if error is None else Verdict.FAILURE)
        else:
            call.answered(now, call.number, Answer(Verdict.FAILURE, 0, 500))


def _check(arrival: Arrival, values: Any) -> None:
    """Refuse what a rule and an application would read differently. Raises ``Refused``."""
    if arrival.method != arrival.method.upper():
        # To a rule it is another method, and many a framework makes capitals of it.
        raise Refused(400, "the method is not in capitals")
    if len(values("host")) > 1:
        raise Refused(400, "there are two hosts")


def _authorize(mesh: Mesh, table: Table, arrival: Arrival, serving: Serving) -> None:
    connection, caller = arrival.connection, serving.caller
    if table.gate.authorizer is None:
        return
    server = connection.server or (None, None)
    request = InboundRequest(
        arrival.method, serving.path, host=next(iter(_values(arrival.headers)("host")), ""), headers=_ByName(arrival.headers),
        principal=None if caller.identity is None else caller.identity.principal, source_ip=caller.source, remote_ip=caller.remote,
        destination_ip=server[0], destination_port=server[1], sni=connection.sni,
    )
    if not mesh.authorized(table, request):
        raise Refused(403, "")


class _ByName(Mapping[str, Sequence[str]]):
    """The values of each header, looked for when somebody asks for one."""

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> Sequence[str]:
        found = [value for key, value in self._headers if key == name]
        if not found:
            raise KeyError(name)
        return found

    def __iter__(self) -> Any:
        return iter({name for name, _ in self._headers})

    def __len__(self) -> int:
        return len({name for name, _ in self._headers})


def _values(headers: Headers) -> Any:
    return lambda wanted: [value for name, value in headers if name == wanted]


def _headers(mesh: Mesh, table: Table, arrival: Arrival, serving: Serving) -> Headers:
    connection, kept = arrival.connection, arrival.headers
    if any(name == HEADER for name, _ in kept):
        if table.gate.trusts(connection.source):
            return kept
        kept = [pair for pair in kept if pair[0] != HEADER]
    if connection.peer is None or serving.caller.identity != connection.peer:
        return kept
    own = mesh.identity
    said = made_of(None if own is None else own.svid.id, connection.peer, connection.fingerprint, connection.subject)
    return [*kept, (HEADER, said)]


def _seconds(values: Sequence[str]) -> float:
    text = values[0] if values else ""
    return int(text) / 1000 if text.isascii() and text.isdigit() and len(text) < 12 else INFINITY


def _reply(error: CallError) -> Reply:
    status, body, _, _ = error.reply
    retry_after = [] if error.retry_after is None else [("retry-after", str(max(1, round(error.retry_after + 0.5))))]
    return Reply(status, body, retry_after)

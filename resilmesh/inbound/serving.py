"""One HTTP request that is served, but for its waiting: what the middlewares of both kinds share.

    arrival      what the server knows of it
    let_in       -> the caller, the path in its one form, the engine's call; or what is answered instead
    outcome      after the call's waiting (``resilmesh.drive``): what is answered instead, or nothing
    begin, end   within them the application runs, which is the call's one attempt
    responded    its status; ``done``: its end

Refused by the gate (400, 403) come before the limits (429, 503), as Envoy's filters do: who may not come in uses up nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import Token
from typing import TYPE_CHECKING, Any, NamedTuple

from resilmesh.drive.context import CALLER, DEADLINE, PASSED_ON, passed_on, unset
from resilmesh.engine.call import RAISE, Call
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import Answer, Verdict, of_status
from resilmesh.errors import InjectedFault
from resilmesh.identity.authz import InboundRequest
from resilmesh.identity.gate import ACCESS_DENIED, Connection, Refused, check_one_meaning
from resilmesh.identity.paths import HostilePath, normalise
from resilmesh.identity.xfcc import HEADER, made_of
from resilmesh.telemetry.methods import known_method
from resilmesh.telemetry.served import Served

if TYPE_CHECKING:
    from resilmesh.engine.call import Step
    from resilmesh.engine.compile import Table
    from resilmesh.errors import CallError
    from resilmesh.mesh import Mesh

Headers = Sequence[tuple[str, str]]
#: What is answered to whom is not let in, by the status.
_BODIES = {400: "", 403: ACCESS_DENIED}
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


def let_in(mesh: Mesh, arrival: Arrival, *, traced_within: bool = False) -> Serving | Reply:
    """The request as it is served, or the answer to who may not come in. ``traced_within``: the application makes the span of it."""
    served = _served(mesh, arrival, traced_within)
    try:
        serving = Serving(mesh, arrival, served)
    except Refused as refused:
        reason = str(refused)
        if reason:
            mesh.turned_away(reason)
        served.over(refused.status)
        return Reply(refused.status, _BODIES[refused.status])
    identity = serving.caller.identity
    served.tell(caller=None if identity is None else str(identity))
    return serving


def _served(mesh: Mesh, arrival: Arrival, within: bool) -> Served:
    method = known_method(arrival.method)
    attributes: dict[str, Any] = {"http.request.method": method, "url.path": arrival.target.partition("?")[0]}
    if arrival.connection.source is not None:
        attributes["client.address"] = arrival.connection.source
    return Served(mesh, method, method, dict(arrival.headers), attributes, within=within)


class Serving:
    """A request that was let in."""

    __slots__ = ("_clock", "_inside", "_responded", "_seat", "_tokens", "call", "caller", "headers", "path", "served")

    def __init__(self, mesh: Mesh, arrival: Arrival, served: Served) -> None:
        """Raises ``Refused``."""
        #: What is told of it.
        self.served = served
        self._seat: Any = None
        table = mesh.table
        self._clock = clock = mesh.clock
        by_name = _by_name(arrival.headers)
        check_one_meaning(arrival.method, by_name.get("host", ()))
        self.caller = table.gate.caller(arrival.connection, by_name.get("x-forwarded-for", ()), by_name.get(HEADER, ()))
        try:
            #: What the application is to take for the path.
            self.path = normalise(arrival.target)
        except HostilePath as error:
            raise Refused(400, f"the path cannot be used: {error}") from None
        _authorize(mesh, table, arrival, by_name, self)
        #: What it is to take for the headers: of the caller's certificate it sees what is true, or nothing.
        self.headers = _headers(mesh, table, arrival, self)
        now = clock.monotonic()
        self._inside = min(DEADLINE.get(), now + _seconds(by_name.get(_TIMEOUT, ())))
        plan = table.inbound
        self.call = None if plan is None else Call(plan, deadline=self._inside)
        if self.call is not None and plan is not None and plan.by_value is not None:
            self.call.values = tuple(by_name.get(name, (None,))[0] for name in plan.by_value.headers)
        self._responded = False
        self._tokens: tuple[Token[Any], ...] = ()

    # ------------------------------------------------------------------------------------------ the limits

    def outcome(self, step: Step) -> Reply | None:
        """Of the call's waiting, which ended with ``step``: the answer in the application's place; ``None``: it is to be served."""
        call = self.call
        if call is None:
            return None
        if step is RAISE:
            error = call.take_error()
            reply = Reply(error.status, error.reply[1]) if isinstance(error, InjectedFault) else _reply(error)
        elif call.injected is None:
            return None
        else:
            # A fault stands in the application's place.
            verdict, _ = of_status(call.injected)
            call.answered(self._clock.monotonic(), call.number, Answer(verdict, 0, call.injected, injected=True))
            reply = Reply(call.injected, InjectedFault.reply[1])
        self.served.over(reply.status)
        return reply

    # ----------------------------------------------------------------------------------------- the context

    def begin(self, arrival: Arrival) -> None:
        """What the application calls knows whom it is called for, by when it must be done, and of which trace it is part."""
        self._seat = self.served.enter()
        self._tokens = CALLER.set(self.caller), DEADLINE.set(self._inside), PASSED_ON.set(passed_on(arrival.headers))

    def end(self) -> None:
        """Nothing of it stays for the next request that this thread, or this task, serves."""
        for token in self._tokens:
            unset(token)
        self._tokens = ()
        self.served.leave(self._seat)

    # --------------------------------------------------------------------------------------------- the end

    def responded(self, status: int) -> None:
        """The application gave its status."""
        self.served.answers(status)
        if self.call is not None and not self._responded:
            self._responded = True
            verdict, _ = of_status(status)
            self.call.answered(self._clock.monotonic(), self.call.number, Answer(verdict, 0, status, complete=False))

    def done(self, error: BaseException | None) -> None:
        """It came to its end. ``error``: what it raised."""
        status = self.served.status
        if error is None:
            self.served.over(status)
        elif isinstance(error, Exception):
            self.served.over(status or 500, "incomplete_body" if status else type(error).__qualname__)
        else:
            self.served.over(status, "cancelled")
        call, now = self.call, self._clock.monotonic()
        if call is None:
            return
        if error is not None and not isinstance(error, Exception):
            call.abandon(now)
        elif self._responded:
            call.ended(now, call.number, Verdict.SUCCESS if error is None else Verdict.FAILURE)
        else:
            call.answered(now, call.number, Answer(Verdict.FAILURE, 0, 500))


def _by_name(headers: Headers) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return found


def _authorize(mesh: Mesh, table: Table, arrival: Arrival, by_name: Mapping[str, Sequence[str]], serving: Serving) -> None:
    connection, caller = arrival.connection, serving.caller
    if table.gate.authorizer is None:
        return
    server = connection.server or (None, None)
    request = InboundRequest(
        arrival.method, serving.path, host=by_name.get("host", ("",))[0], headers=by_name,
        principal=None if caller.identity is None else caller.identity.principal, source_ip=caller.source, remote_ip=caller.remote,
        destination_ip=server[0], destination_port=server[1], sni=connection.sni,
    )
    if not mesh.authorized(table, request):
        raise Refused(403, "")


def _headers(mesh: Mesh, table: Table, arrival: Arrival, serving: Serving) -> Headers:
    connection = arrival.connection
    kept = [pair for pair in arrival.headers if pair[0] != HEADER]
    if len(kept) < len(arrival.headers) and table.gate.trusts(connection.source):
        return arrival.headers
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

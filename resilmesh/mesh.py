"""``Mesh``: the one object users hold. It loads a policy, checks it, compiles it and swaps it in, whole or not at all.

    text -> load -> check -> compile -> commit state -> swap the table
                 any mistake: PolicyError, and the policy in force stays

Invariant: ``table`` is replaced by one assignment and never mutated, so whoever read it has a consistent policy.
"""

from __future__ import annotations

import logging
import operator
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypedDict, TypeVar, Unpack, get_args

from resilmesh.drive.attempts import Attempts
from resilmesh.drive.forms import Kind, kind_of
from resilmesh.drive.guard import BlockOptions, Guard, Options, unknown
from resilmesh.drive.system import SYSTEM
from resilmesh.engine import call as engine_call
from resilmesh.engine.events import Hub, Observer
from resilmesh.engine.plan import INBOUND
from resilmesh.engine.store import Store
from resilmesh.errors import Forbidden, PolicyError, UnknownService
from resilmesh.state.breaker import Force
from resilmesh.state.ledger import Ledger
from resilmesh.state.stats import Outcomes
from resilmesh.telemetry.telemetry import Telemetry
from resilmesh.watch import PolicyFile

if TYPE_CHECKING:
    import ssl

    from resilmesh.clock import Clock
    from resilmesh.describe import Description, RequestDescription
    from resilmesh.engine.compile import Compiler, Table
    from resilmesh.engine.match import Headers
    from resilmesh.engine.plan import Plan, Tls
    from resilmesh.identity.authz import Decision, InboundRequest
    from resilmesh.identity.gate import Verdicts
    from resilmesh.identity.opening import Workload
    from resilmesh.identity.source import Source
    from resilmesh.identity.svid import Identity
    from resilmesh.inject import Injection, Scope
    from resilmesh.policy.codes import Diagnostic
    from resilmesh.policy.load import Loaded
    from resilmesh.policy.model import Policy
    from resilmesh.telemetry.admin_server import Admin
    from resilmesh.telemetry.exposition import Exposition

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")
Mode = Literal["ENFORCE", "OBSERVE", "OFF"]
LocalReplies = Literal["RAISE", "RESPOND"]
Outbound = Literal["ALLOW_ANY", "REGISTRY_ONLY"]

log = logging.getLogger("resilmesh")

#: Environment variables that override the policy's mesh block; an argument overrides both.
ENVIRONMENT = {
    "mode": ("RESILMESH_MODE", get_args(Mode)),
    "outbound": ("RESILMESH_OUTBOUND", get_args(Outbound)),
    "local_replies": ("RESILMESH_LOCAL_REPLIES", get_args(LocalReplies)),
    "workload": ("RESILMESH_WORKLOAD", ()),
}


class Settings(TypedDict, total=False):
    """What ``Mesh.from_file``, ``from_text`` and ``from_policy`` take by name.

    An argument wins over the environment (``RESILMESH_MODE`` and so on), and that over the policy's ``mesh`` block.
    """

    clock: Clock | None
    """Where the time comes from: ``resilmesh.testing.ManualClock`` in tests."""
    seed: int | None
    """Makes every draw (backoff, faults, splits, balancing) repeatable."""
    mode: Mode | None
    """Overrides ``mesh.mode``."""
    outbound: Outbound | None
    """Overrides ``mesh.outbound``."""
    local_replies: LocalReplies | None
    """Overrides ``mesh.localReplies``."""
    workload: str | None
    """Overrides ``mesh.workload``."""
    identity: Source | str | os.PathLike[str] | None
    """Where this workload's certificate comes from: a directory, a Workload API (``unix:///...``), or what keeps it fresh. Overrides
    ``RESILMESH_IDENTITY`` and ``mesh.identity``."""


class FileSettings(Settings, total=False):
    """What ``configure`` takes by name."""

    reload_interval: float | None
    """Seconds between two looks at the policy's file, 1 by default; ``None``: it is never looked at again."""


#: Where each value was written is remembered for policies of so many services; of more it would weigh more than they do.
_PLACES_KEPT = 1000


class Mesh:
    """One policy and the state of everything it governs. Serves any number of threads and event loops.

    Made by ``Mesh.from_file``, ``Mesh.from_text`` or ``Mesh.from_policy``, each with ``Settings`` by name.

    Raises ``PolicyError`` with every mistake of the policy.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        clock: Clock | None = None,
        seed: int | None = None,
        mode: Mode | None = None,
        outbound: Outbound | None = None,
        local_replies: LocalReplies | None = None,
        workload: str | None = None,
        identity: Source | str | os.PathLike[str] | None = None,
    ) -> None:
        from random import Random

        if isinstance(loaded, str | bytes | os.PathLike):
            raise TypeError("use Mesh.from_file(path) or Mesh.from_text(text)")
        self.clock: Clock = SYSTEM if clock is None else clock
        self._overrides = _overrides(mode=mode, outbound=outbound, local_replies=local_replies, workload=workload)
        #: Where it comes from in spite of the policy.
        self._identity_given = identity or os.environ.get("RESILMESH_IDENTITY") or None
        self._workload: Workload | None = None
        self._verdicts: Verdicts
        self._seeded = seed is not None
        self._rng = Random(seed)  # noqa: S311  # jitter and drills, not secrets
        #: Where everything that is counted is kept.
        self.ledger = Ledger()
        #: Requests that were served here, or refused, by what they came to.
        self.arrivals = Outcomes(self.ledger, INBOUND, "*")
        self._hub = Hub(self.ledger)
        self._store = Store(self.ledger)
        self._applying = threading.Lock()
        self._injections: tuple[Injection, ...] = ()
        self._faults_enabled = True
        self._guarded: set[tuple[str, str | None]] = set()
        #: What ``call`` runs functions with, by service and kind of function.
        self._runners: dict[tuple[str, Kind], Callable[..., Any]] = {}
        self.doubted: set[tuple[str, str | None]] = set()
        self._revision = 0
        self._refused = 0
        self._last_refusal: str | None = None
        self._watch: PolicyFile | None = None
        #: The compiled policy in force. Read it once per call.
        self.table: Table
        self._in_force: Compiler | None = None
        self._loaded: Loaded
        self._compile(loaded)
        environ = os.environ
        #: Who is told of the mesh, and what.
        self.telemetry = Telemetry(
            self, directory=environ.get("RESILMESH_STATS_DIR"), access_log=environ.get("RESILMESH_ACCESS_LOG"),
            profile=environ.get("RESILMESH_PROFILE"),
        )
        self.telemetry.attach()
        self._admin: Admin | None = None
        if environ.get("RESILMESH_ADMIN"):
            self._admin = self._serve_admin(environ["RESILMESH_ADMIN"], write=False, waits=True)
        _meshes.add(self)
        for tell in made:
            tell(self)

    # ------------------------------------------------------------------------------------------- making

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        reload_interval: float | None = 1.0,
        **settings: Unpack[Settings],
    ) -> Self:
        """From a YAML or JSON file, which is looked at every ``reload_interval`` seconds (``None``: never) and applied when it changed.

        A bad edit is refused with a log line, an event and a counter; the last good policy goes on.
        """
        from resilmesh.policy.load import load_file
        from resilmesh.policy.prepared import LARGE, prepare

        fingerprint = PolicyFile.fingerprint(path)
        large = os.path.exists(path) and os.path.getsize(path) >= LARGE
        mesh = cls(prepare(os.fspath(path)) if large else load_file(path), **settings)
        mesh._watch = PolicyFile(mesh._apply_file, path, fingerprint, reload_interval)
        return mesh

    @classmethod
    def from_text(cls, text: str | bytes, **settings: Unpack[Settings]) -> Self:
        """From YAML or JSON."""
        from resilmesh.policy.load import load_text

        if isinstance(text, os.PathLike):
            raise TypeError(f"Mesh.from_text takes the policy's text: use Mesh.from_file({text!r})")
        try:
            return cls(load_text(text), **settings)
        except PolicyError as error:
            if isinstance(text, str) and text.strip().endswith((".yaml", ".yml", ".json")) and "\n" not in text:
                error.add_note(f"this looks like a path: use Mesh.from_file({text.strip()!r})")
            raise

    @classmethod
    def from_policy(cls, policy: Policy, **settings: Unpack[Settings]) -> Self:
        """From a model that was built in code."""
        return cls(_built(policy), **settings)

    # --------------------------------------------------------------------------------------- the policy

    def apply_text(self, text: str | bytes, source: str = "<text>") -> int:
        """Put a new policy in force and return its revision. State is kept where its key stays.

        Raises ``PolicyError`` and changes nothing when the policy has any mistake.
        """
        from resilmesh.policy.load import load_text

        return self._apply(lambda: load_text(text, source))

    def apply_policy(self, policy: Policy) -> int:
        """Like ``apply_text`` for a model that was built in code."""
        return self._apply(lambda: _built(policy))

    def reload(self) -> bool:
        """Look at the policy's file now; whether a new policy was put in force.

        Raises ``PolicyError`` if the file changed and cannot be used; the policy in force goes on.
        """
        if self._watch is None:
            raise RuntimeError("this mesh was not made by Mesh.from_file, so there is no file to reload")
        return self._watch.look()

    def _apply_file(self, path: str, pause: Callable[[], None] | None) -> None:
        """``pause``: this is a thread of its own, which is to hold up no call."""
        from resilmesh.policy.load import load_file
        from resilmesh.policy.prepared import prepare

        old = self.table
        if pause is None:
            self._apply(lambda: load_file(path))
            return
        self._apply(lambda: prepare(path, pause), pause)
        remains = old.remains()
        del old
        while remains:
            remains.pop()
            pause()

    def _apply(self, load: Callable[[], Loaded], pause: Callable[[], None] = lambda: None) -> int:
        with self._applying:
            try:
                self._compile(load(), pause)
            except PolicyError as error:
                self._refused += 1
                self._last_refusal = str(error)
                refusal: PolicyError | None = error
            else:
                refusal = None
        now = self.clock.monotonic()
        if refusal is not None:
            log.error("policy refused, revision %d stays in force:\n%s", self._revision, refusal)
            self._hub.report(now, "policy_refused", error=str(refusal))
            raise refusal
        log.info("policy applied as revision %d", self._revision)
        self._hub.report(now, "policy_applied", revision=self._revision)
        return self._revision

    def _compile(self, loaded: Loaded, pause: Callable[[], None] = lambda: None) -> None:
        """Put a policy in force. Raises ``PolicyError`` and changes nothing when there is a mistake in it."""
        # What only a policy needs (pydantic, the model, the compiler) is imported with the first of them.
        from resilmesh.policy.check import check
        from resilmesh.policy.document import Places
        from resilmesh.policy.load import Loaded

        errors = [] if loaded.checked else [each for each in check(loaded) if each.severity == "error"]
        errors += self._missing(loaded)
        if errors:
            raise PolicyError(errors)
        policy = loaded.policy
        if self._overrides:
            policy = policy.model_copy(update={"mesh": policy.mesh.model_copy(update=self._overrides)})
        self._identify(loaded, policy)
        self._swap(policy, pause)
        self._loaded = Loaded(policy, loaded.source, loaded.places if len(policy.services) <= _PLACES_KEPT else Places(), checked=True)
        self._revision += 1

    def _identify(self, loaded: Loaded, policy: Policy) -> None:
        """Be who the policy, or what overrides it, says. Raises ``PolicyError``."""
        from resilmesh.identity.opening import identify

        before = self._workload
        found = identify(loaded, policy, self._identity_given, before, self.clock.wall)
        if found is not before and found is not None:
            found.source.listen(self._identity_changed)
        self._workload = found
        if before is not None and found is not before:
            before.close()

    def _identity_changed(self, event: str, facts: dict[str, Any]) -> None:
        if event == "identity_rotated":
            with self._applying:
                # The same policy in a new table: whatever keeps connections sees that, and begins new ones.
                self._swap(self.table.policy)
        self._hub.report(self.clock.monotonic(), event, **facts)

    def _swap(self, policy: Policy, pause: Callable[[], None] = lambda: None) -> None:
        """Compile a policy, with the injections that are active, and put it in force."""
        compiler = self._compiler(policy, pause)
        from resilmesh.identity.gate import Gate, Verdicts

        table = compiler.table()
        table.gate = Gate(policy.inbound)
        if self._in_force is None:
            self._verdicts = Verdicts(self.ledger)
        if self._in_force is not None:
            self._in_force.superseded = True
        compiler.commit()
        self.table, self._in_force = table, compiler

    def _compiler(self, policy: Policy, pause: Callable[[], None] = lambda: None) -> Compiler:
        from resilmesh.engine.compile import Compiler

        settings = policy.mesh
        return Compiler(
            policy, self._store, self._hub, self._rng, respond=settings.local_replies == "RESPOND",
            forbids_unknown=settings.outbound == "REGISTRY_ONLY" and settings.mode == "ENFORCE", pause=pause,
            injections=self._injections, faults=self._faults_enabled,
        )

    def _missing(self, loaded: Loaded) -> list[Diagnostic]:
        """Functions that are guarded must stay so: a policy without their service would fail every one of their calls."""
        from resilmesh.policy.codes import GUARDED_MISSING as CODE
        from resilmesh.policy.codes import Diagnostic
        from resilmesh.policy.prepared import names_and_hosts

        missing = []
        services = {name: number for number, (name, _) in enumerate(names_and_hosts(loaded.policy))}
        for service, route in sorted(self._guarded, key=str):
            known = services.get(service)
            routes = () if known is None or route is None else loaded.policy.services[known].routes or ()
            if known is None or (route is not None and all(each.name != route for each in routes)):
                name = service if route is None else f"{service}/{route}"
                line, column = loaded.places.line_column(("services",))
                said = f"a guarded function needs {name!r}, which the policy does not have"
                missing.append(Diagnostic(loaded.source, line, column, CODE.code, said, CODE.remedy))
        return missing

    # ----------------------------------------------------------------------------------------- functions

    def guard(self, service: str, **options: Unpack[Options]) -> Callable[[F], F]:
        """Decorate a function with the policy of ``service``; what it takes by name is in ``resilmesh.drive.guard.Options``.

        Functions, methods and coroutine functions are calls. A generator function, asynchronous or not, is a stream: one
        call, which begins with the first item that is asked for and ends when the generator ends.

        Raises ``UnknownService`` when the policy does not have the name.
        """
        guard = Guard(self, service, **options)
        self._know(service, options.get("route"))
        return guard

    def attempts(self, service: str, **options: Unpack[BlockOptions]) -> Attempts:
        """The policy of ``service`` around a block of code: ``for attempt in mesh.attempts("ledger"): with attempt: ...``.

        With ``async for`` in a coroutine. The block runs once per attempt; options as for ``guard``, but for the fallback.
        """
        attempts = Attempts(Guard(self, service, **options))
        self._know(service, options.get("route"))
        return attempts

    def call(self, service: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """One call of ``function(*args, **kwargs)`` under the policy of ``service``, as if it were guarded without options.

        Of a coroutine function the result is to be awaited, of a generator function to be iterated. All names belong to
        the function: for options write ``mesh.guard(service, ...)(function)``. Raises ``UnknownService``.
        """
        kind = kind_of(function)
        run = self._runners.get((service, kind))
        if run is None:
            run = self._runners[service, kind] = self._runner(service, kind)
        result: T = run(function, *args, **kwargs)
        return result

    def _runner(self, service: str, kind: Kind) -> Callable[..., Any]:
        guard = Guard(self, service)
        self._know(service, None)
        return guard.wrap(kind)(operator.call)

    def _know(self, service: str, route: str | None) -> None:
        table = self.table
        if not table.named(service, route)[0]:
            raise UnknownService(unknown(table, service, route))
        self._guarded.add((service, route))

    # --------------------------------------------------------------------------------------- describing

    def describe(self, service: str, *, route: str | None = None) -> Description:
        """What applies to the calls of a route, or of a service where no route matches, in the order of decisions: data to assert on.

        Every value with its unit and the place where it was written; overrides and active injections included. Of a policy
        of more than a thousand services the places are not kept. Raises ``UnknownService``.
        """
        from resilmesh.describe import describe

        loaded, table = self._loaded, self.table
        if not table.named(service, route)[0]:
            raise UnknownService(unknown(table, service, route))
        index = table.by_name[service]
        number = None if route is None else table.served(index).route_names[route]
        return describe(loaded, index, number, self._injections, self._overrides)

    def describe_request(self, method: str, url: str, *, headers: Mapping[str, str] | None = None) -> RequestDescription:
        """Which service and route an HTTP request belongs to, why, and what applies to it. Raises ``ValueError`` for what is no URL."""
        from resilmesh.describe import describe_request, lower, parse_url

        loaded = self._loaded
        host, port, target = parse_url(url)
        found = self.table.locate(method.upper(), host, port, target, lower(headers))
        return describe_request(loaded, found, host, port, self._injections, self._overrides)

    # -------------------------------------------------------------------------------------------- faults

    def inject(
        self, service: str, *, route: str | None = None, status: int | None = None, delay: float | str | None = None,
        percent: float = 100, scope: Scope = "CALL",
    ) -> Injection:
        """A fault for as long as a block runs: ``with mesh.inject("inventory", status=503): ...``, in async code too, or as a decorator.

        ``route=None``: every route of the service. ``status`` (200-599) answers in the service's place, ``delay`` (seconds, or
        text such as ``"300ms"``; 1h at most) waits first, each for ``percent`` (0-100) of the calls. ``scope``: as in the
        policy's ``fault``, of which it is a further one; of several, every delay and the innermost status count. It stands
        through a reload, and a call keeps what it began with.

        Raises ``UnknownService``, and ``ValueError`` when the target is under mode OFF or OBSERVE, where no fault acts.
        """
        from resilmesh.inject import Injection

        return Injection(self, service, route=route, status=status, delay=delay, percent=percent, scope=scope)

    def _begin_injection(self, injection: Injection) -> None:
        with self._applying:
            self._injections = (*self._injections, injection)
            self._swap(self.table.policy)
        self._hub.report(self.clock.monotonic(), "injection_began", **injection.shown())

    def _end_injection(self, injection: Injection) -> None:
        with self._applying:
            self._injections = tuple(each for each in self._injections if each is not injection)
            self._swap(self.table.policy)
        self._hub.report(self.clock.monotonic(), "injection_ended", **injection.shown())

    def enable_faults(self, enabled: bool) -> None:
        """Have no fault act, neither the policy's nor those of ``inject``, until they are enabled again. A reload does not undo it."""
        with self._applying:
            self._faults_enabled = enabled
            self._swap(self.table.policy)

    # ------------------------------------------------------------------------------------------ adapters

    def route_http(self, method: str, host: str, port: int, target: str, headers: Headers) -> Plan | None:
        """The plan for an HTTP request; ``None`` when no policy applies to it.

        ``target`` is the path with its query. Raises ``Forbidden`` under ``outbound: REGISTRY_ONLY`` for a host that
        no service has.
        """
        table = self.table
        found, plan = table.find(method, host, port, target, headers)
        if not found and table.forbids_unknown:
            raise Forbidden(f"no service of the policy has the host {host}:{port}, and outbound is REGISTRY_ONLY")
        return plan

    def route_grpc(self, host: str, port: int, name: str, path: str, headers: Headers) -> Plan | None:
        """The plan for a gRPC call of ``path`` (``/package.Service/Method``) on a channel to a host, or to a service by its ``name``.

        ``None`` and ``Forbidden`` as for ``route_http``.
        """
        table = self.table
        found, plan = table.find_grpc(host, port, name, path, headers)
        if not found and table.forbids_unknown:
            raise Forbidden(f"no service of the policy has the host {name}, and outbound is REGISTRY_ONLY")
        return plan

    @property
    def identity(self) -> Identity | None:
        """Who this workload is at the moment, and whom it trusts; ``None``: nothing says it."""
        return None if self._workload is None else self._workload.source.newest

    @property
    def identity_source(self) -> Source | None:
        """What keeps it fresh."""
        return None if self._workload is None else self._workload.source

    def authorized(self, table: Table, request: InboundRequest) -> bool:
        """Whether a request that arrived may pass, by the policies of ``inbound.authorization``: decided, counted and told."""
        decision: Decision = table.gate.authorizer.decide(request)
        self._verdicts.count(decision)
        if self._hub.observers:
            told: dict[str, Any] = {"workload": table.policy.mesh.workload, "principal": request.principal, "method": request.method}
            self._hub.emit(self.clock.monotonic(), "authorized", **told, **decision.told())
        if not decision.allowed:
            log.info("request of %s denied: %s", request.principal or "a caller without identity", decision.reason)
        return decision.allowed

    def turned_away(self, reason: str) -> None:
        """A request that arrived is refused before anybody asks whether it may pass: counted and told."""
        self._verdicts.refuse()
        self._hub.report(self.clock.monotonic(), "turned_away", workload=self.table.policy.mesh.workload, reason=reason)
        log.info("request refused: %s", reason)

    def tls_context(self, tls: Tls, alpn: Sequence[str]) -> ssl.SSLContext | None:
        """The context for connections to a service. Raises ``NoIdentity``.

        ``None``: nothing is said of who it is, so that the client's own context is to prove the host's name.
        """
        from resilmesh.identity.tls import outbound

        workload, key = self._workload, (tls, tuple(alpn))
        if workload is None:
            return outbound(None, tls, alpn, self.clock.wall)
        made = workload.contexts.get(key) or outbound(workload.source, tls, alpn, self.clock.wall)
        return None if made is None else workload.contexts.setdefault(key, made)

    @property
    def hub(self) -> Hub:
        """Where events go."""
        return self._hub

    @property
    def respond(self) -> bool:
        """Whether outcomes made locally are responses (``localReplies: RESPOND``) rather than exceptions."""
        return self.table.policy.mesh.local_replies == "RESPOND"

    # ---------------------------------------------------------------------------------------- by hand

    def force_circuit(self, service: str, to: Force, *, route: str | None = None) -> None:
        """Set the circuit of a service, or of a route that has one of its own, by hand; ``AUTO`` gives it back to its calls.

        ``OPEN`` refuses every attempt; ``CLOSED`` lets all through and counts nothing; ``METRICS_ONLY`` lets all through, counts, and
        says by the event ``circuit_would_open`` when it would have opened. A new policy does not undo it.

        Raises ``UnknownService`` for a name that the policy does not have, and ``ValueError`` where there is no circuit.
        """
        if to not in get_args(Force):
            raise ValueError(f"a circuit is forced to one of {', '.join(get_args(Force))}, not {to!r}")
        table = self.table
        known, plan = table.named(service, route)
        if not known:
            raise UnknownService(unknown(table, service, route))
        if plan is None or plan.breaker is None:
            name = service if route is None else f"{service}/{route}"
            raise ValueError(f"{name!r} has no circuit: " + ("its mode is OFF" if plan is None else "give it a 'circuitBreaker'"))
        plan.breaker.force(to, self.clock.monotonic())

    # ----------------------------------------------------------------------------------------- observing

    def subscribe(self, observer: Observer) -> Callable[[], None]:
        """Have ``observer`` called with every ``Event`` from now on; the returned function ends that."""
        return self._hub.subscribe(observer)

    def snapshot(self) -> dict[str, Any]:
        """Everything that is remembered, as plain data: every circuit, limit, budget, endpoint, gauge and counter."""
        now = self.clock.monotonic()
        self._hub.drain(now)
        services: dict[str, dict[str, Any]] = {name: _empty() for name in self.table.by_name}
        in_flight = 0
        for kind, section in _SECTIONS.items():
            for (_, service, route, detail), state in self._store.of_kind(kind):
                shown = state.snapshot(now)
                if kind == "stats":
                    in_flight += shown["inFlight"]
                # A policy that is being applied has its state a moment before it has its table.
                sections = services.setdefault(service, _empty())
                if kind == "retryBudget":
                    sections[section] = shown
                elif kind == "rateLimit":
                    sections[section].setdefault(route, {})[detail] = shown
                else:
                    sections[section][detail if kind == "endpoint" else route] = shown
        mesh, inbound = self.table.policy.mesh, services.pop(INBOUND, None)
        workload = self._workload
        return {
            "identity": None if workload is None else workload.snapshot(self.clock.wall()),
            "workload": mesh.workload, "mode": mesh.mode, "outbound": mesh.outbound, "localReplies": mesh.local_replies,
            "revision": self._revision, "refused": self._refused, "lastRefusal": self._last_refusal, "inFlight": in_flight,
            "injections": [each.shown() for each in self._injections], "services": services,
            "authorization": None if self.table.gate.authorizer is None else self._verdicts.snapshot(),
            "inbound": None if inbound is None else {
                "calls": inbound["routes"]["*"], "concurrency": inbound["concurrency"].get("*"),
                "rateLimits": inbound["rateLimits"].get("*", {}),
            },
        }

    def prometheus(self) -> Exposition:
        """The metrics for Prometheus: an ASGI application, whose ``wsgi`` is a WSGI one, and whose ``text()`` is what they answer."""
        from resilmesh.telemetry.exposition import Exposition

        return Exposition(self)

    def serve_admin(self, address: str = "127.0.0.1:9901", *, write: bool = False) -> Admin:
        """Serve the admin pages (docs/reference/admin.md) on HOST:PORT (0: any that is free) or ``unix:/PATH``, until ``close``.

        Read-only; with ``write`` circuits, faults and the log's level can be changed through it. Of ``RESILMESH_ADMIN``, which does
        it for the mesh of a process, it is the other way to say it: there a worker waits for the address while another one has it.
        Raises ``OSError`` and ``ValueError``.
        """
        if self._admin is not None:
            self._admin.close()
        self._admin = self._serve_admin(address, write=write, waits=False)
        return self._admin

    def _serve_admin(self, address: str, *, write: bool, waits: bool) -> Admin:
        from resilmesh.telemetry.admin_server import Admin

        return Admin(self, address, write=write, waits=waits)

    # ------------------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Stop looking at the files of the policy and of the identity. Calls in flight end as they would have; idempotent."""
        if self._watch is not None:
            self._watch.close()
        if self._workload is not None:
            self._workload.close()
        self.telemetry.close()
        if self._admin is not None:
            self._admin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Mesh revision {self._revision}: {', '.join(self.table.by_name) or 'no services'}>"

    def _after_fork(self) -> None:
        self._applying = threading.Lock()
        self._hub.after_fork()
        self.telemetry.after_fork()
        if self._admin is not None:
            self._admin.after_fork()
        self._store.after_fork()
        if not self._seeded:
            # Workers forked from one parent must not draw the same jitter.
            self._rng.seed()
        if self._watch is not None:
            self._watch.after_fork()


_SECTIONS = {
    "stats": "routes", "circuitBreaker": "circuitBreakers", "concurrency": "concurrency", "rateLimit": "rateLimits",
    "retryBudget": "retryBudget", "endpoint": "endpoints",
}


def _empty() -> dict[str, Any]:
    return {section: None if section == "retryBudget" else {} for section in _SECTIONS.values()}


def _built(policy: Policy) -> Loaded:
    from resilmesh.policy.document import Places
    from resilmesh.policy.load import Loaded
    from resilmesh.policy.model import Policy

    if not isinstance(policy, Policy):
        raise TypeError(f"a resilmesh.policy.model.Policy is needed, not {type(policy).__name__}: Policy.model_validate makes one")
    return Loaded(policy, "<policy>", Places())


def _overrides(**arguments: str | None) -> dict[str, str]:
    overrides = {}
    for name, (variable, words) in ENVIRONMENT.items():
        argument = arguments[name]
        value, origin = (os.environ.get(variable), variable) if argument is None else (argument, f"{name}=")
        if not value:
            continue
        if words and value not in words:
            raise ValueError(f"{origin} is {value!r}; it must be one of {', '.join(words)}")
        overrides[name] = value
    return overrides


# ------------------------------------------------------------------------------------------------- forking

_meshes: weakref.WeakSet[Mesh] = weakref.WeakSet()
#: Told of each mesh that is made: the pytest plugin looks after those of a test.
made: list[Callable[[Mesh], object]] = []


def _after_fork() -> None:
    engine_call.forked()
    for mesh in _meshes:
        mesh._after_fork()


def _forked() -> None:
    for mesh in _meshes:
        mesh.telemetry.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork, after_in_parent=_forked)


# ------------------------------------------------------------------------------------- the one-mesh program


class _Default:
    """The process's own mesh, which need not exist yet when a function is decorated."""

    def __init__(self) -> None:
        self.mesh: Mesh | None = None
        self._guarded: set[tuple[str, str | None]] = set()

    def know(self, service: str, route: str | None) -> None:
        """A function is guarded with this name: every mesh of the process must have it. Raises ``UnknownService``."""
        if self.mesh is not None:
            self.mesh._know(service, route)
        self._guarded.add((service, route))

    def put(self, mesh: Mesh) -> None:
        """Use this mesh from now on, and close the one before. Raises ``UnknownService``."""
        for service, route in sorted(self._guarded, key=str):
            mesh._know(service, route)
        earlier, self.mesh = self.mesh, mesh
        if earlier is not None and earlier is not mesh:
            earlier.close()

    def get(self) -> Mesh:
        if self.mesh is None:
            raise RuntimeError("there is no policy yet: call resilmesh.configure('policy.yaml') first")
        return self.mesh

    @property
    def table(self) -> Table:
        return self.get().table

    @property
    def clock(self) -> Clock:
        return self.get().clock

    @property
    def doubted(self) -> set[tuple[str, str | None]]:
        return self.get().doubted


default = _Default()


def configure(policy: Mesh | str | os.PathLike[str] | None = None, **settings: Unpack[FileSettings]) -> Mesh:
    """Make the mesh that ``resilmesh.guard``, ``resilmesh.attempts`` and ``resilmesh.wrap`` use.

    ``policy``: a path, a ``Mesh``, or nothing, which means the file that ``RESILMESH_POLICY`` names. ``settings`` are
    ``Mesh.from_file``'s. An earlier one is closed. Raises ``PolicyError``, and ``UnknownService`` when a function is
    guarded with a name that the policy does not have; the earlier mesh then stays.
    """
    if isinstance(policy, Mesh):
        if settings:
            raise TypeError("settings belong to the path of a policy; this Mesh has its own")
        default.put(policy)
        return policy
    path = policy if policy is not None else os.environ.get("RESILMESH_POLICY")
    if not path:
        raise ValueError("which policy? Pass its path, or set RESILMESH_POLICY")
    mesh = Mesh.from_file(path, **settings)
    try:
        default.put(mesh)
    except UnknownService:
        mesh.close()
        raise
    return mesh


def guard(service: str, **options: Unpack[Options]) -> Callable[[F], F]:
    """``Mesh.guard`` of the mesh that ``configure`` makes, which may be called later than this."""
    guard = Guard(default, service, **options)
    default.know(service, options.get("route"))
    return guard


def attempts(service: str, **options: Unpack[BlockOptions]) -> Attempts:
    """``Mesh.attempts`` of the mesh that ``configure`` made."""
    return default.get().attempts(service, **options)


__all__: Sequence[str] = ("Mesh", "attempts", "configure", "guard")

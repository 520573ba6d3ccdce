"""From a checked policy to the table that calls are served from.

The table is immutable and published by one attribute assignment; compiling claims state from the store but
changes none of it, so a compilation that fails leaves everything as it was. Of a large policy only the services that
have been called are compiled with it, because only they have state; the others when they are called first.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Literal

from resilmesh.engine.events import Hub
from resilmesh.engine.fault import Fault, Faults
from resilmesh.engine.match import Headers, Hosts, Routes, comparison
from resilmesh.engine.plan import INBOUND, Fallback, Mirror, Plan, RetryPlan, Split, Tls
from resilmesh.engine.shape import shape
from resilmesh.engine.store import Claims, Key, Store
from resilmesh.engine.verdict import GRPC_AS_HTTP, Classes, mask
from resilmesh.policy.prepared import Services, names_and_hosts
from resilmesh.policy.resolve import Effective, effective
from resilmesh.state.balance import Balancer
from resilmesh.state.breaker import BreakerSettings, CircuitBreaker
from resilmesh.state.budget import RetryBudget
from resilmesh.state.concurrency import Concurrency
from resilmesh.state.outlier import Endpoint, OutlierDetector, OutlierSettings
from resilmesh.state.ratelimit import AllOf, LimitsByValue, RateLimit, RateLimitByValue
from resilmesh.state.rates import FailurePercentage, SuccessRate
from resilmesh.state.slowstart import SlowStart
from resilmesh.state.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilmesh.engine.fault import Injected
    from resilmesh.policy.model import CircuitBreaker as BreakerBlock
    from resilmesh.policy.model import Classify, OutlierDetection, Policy, Retries, Service, SplitTarget, StringMatch
    from resilmesh.policy.model import Concurrency as ConcurrencyBlock
    from resilmesh.policy.model import Fallback as FallbackBlock
    from resilmesh.policy.model import Fault as FaultBlock
    from resilmesh.policy.model import RateLimit as RateLimitBlock
    from resilmesh.policy.model import SlowStart as SlowStartBlock


#: What the plan of mirrored copies is called; no route of a policy can have the name.
MIRROR_ROUTE = "(mirror)"


#: Up to so many services are compiled at once. Of more, those that have been called; the others when they are.
AT_ONCE = 64


class Served:
    """One service, compiled: the plans of its routes in order, and last its own."""

    __slots__ = ("addresses", "plans", "route_names", "routes")

    def __init__(self, service: Service, plans: tuple[Plan | None, ...]) -> None:
        self.plans = plans
        self.routes = Routes(service)
        self.route_names = {route.name: number for number, route in enumerate(service.routes or ())}
        self.addresses = tuple(endpoint.address for endpoint in service.endpoints or ())


class Table:
    """Every plan of one policy. Immutable, but that a service may be compiled when it is first looked for."""

    __slots__ = ("_hosts", "_open", "_served", "by_name", "forbids_unknown", "gate", "inbound", "policy")

    def __init__(
        self, policy: Policy, by_name: dict[str, int], hosts: Hosts, served: list[Served | None], open_: Callable[[int], Served], *,
        forbids_unknown: bool, inbound: Plan | None,
    ) -> None:
        self.policy = policy
        self.by_name = by_name
        self._hosts = hosts
        self._served = served
        self._open = open_
        #: outbound: REGISTRY_ONLY
        self.forbids_unknown = forbids_unknown
        #: What the calls are under that this workload serves; ``None``: mode OFF, or no inbound block.
        self.inbound = inbound
        #: Who is let in here; set by the mesh, before anybody sees the table. The engine knows nothing of identities.
        self.gate: Any = None

    def find(self, method: str, host: str, port: int, target: str, headers: Headers) -> tuple[bool, Plan | None]:
        """Whether a service has the host, and the plan for the request (``None``: mode OFF, or no service)."""
        index = self._hosts.find(host, port)
        return (False, None) if index is None else (True, self._plan(index, method, target, headers))

    def find_grpc(self, host: str, port: int, name: str, path: str, headers: Headers) -> tuple[bool, Plan | None]:
        """The same for a gRPC call, whose channel names a host, or else a service."""
        index = self._hosts.find(host, port)
        if index is None:
            index = self.by_name.get(name)
        return (False, None) if index is None else (True, self._plan(index, "POST", path, headers))

    def _plan(self, index: int, method: str, target: str, headers: Headers) -> Plan | None:
        served = self._served[index] or self.served(index)
        route = served.routes.find(method, target, headers)
        return served.plans[-1 if route is None else route]

    def locate(self, method: str, host: str, port: int, target: str, headers: Headers) -> tuple[int, int | None] | None:
        """Numbers of the service and the route of a request; ``None``: no service has the host."""
        index = self._hosts.find(host, port)
        return None if index is None else (index, self.served(index).routes.find(method, target, headers))

    def named(self, service: str, route: str | None) -> tuple[bool, Plan | None]:
        """Whether the policy has the service (and its route), and the plan."""
        index = self.by_name.get(service)
        if index is None:
            return False, None
        served = self.served(index)
        if route is None:
            return True, served.plans[-1]
        number = served.route_names.get(route)
        return (False, None) if number is None else (True, served.plans[number])

    def served(self, index: int) -> Served:
        """The service of number ``index``, compiled."""
        served = self._served[index]
        if served is None:
            served = self._served[index] = self._open(index)
        return served

    def addresses(self) -> set[str]:
        """Addresses of the endpoints of every service that was compiled."""
        return {address for served in self._served if served is not None for address in served.addresses}

    def remains(self) -> list[object]:
        """What a table that is not in force any more consists of, to be let go of piece by piece."""
        services: Any = self.policy.services
        return [*self._served, *(services.pieces() if isinstance(services, Services) else services)]


class Compiler:
    """Makes one table. ``respond`` and ``forbids_unknown`` are the mesh's own settings, overrides included.

    ``injections``: the faults that programs have put into it, in the order they came; ``faults``: whether any act. ``pause`` is
    called every now and then, so that a thread that compiles a large policy can let others run.
    """

    def __init__(
        self, policy: Policy, store: Store, hub: Hub, rng: Random, *, respond: bool, forbids_unknown: bool,
        injections: tuple[Injected, ...] = (), pause: Callable[[], None] = lambda: None, faults: bool = True,
    ) -> None:
        self._policy = policy
        self._injections = injections
        self._faults_act = faults
        self._hub = hub
        self._rng = rng
        self._respond = respond
        self._forbids_unknown = forbids_unknown
        self._pause = pause
        self._store = store
        self._by_name: dict[str, int] = {}
        self.claims: Claims = store.claims()
        #: A newer table is in force: what this one still compiles must not change the state that both share.
        self.superseded = False

    def table(self) -> Table:
        """Compile the services; ``commit`` makes it real."""
        hosts = Hosts()
        for index, (name, its) in enumerate(names_and_hosts(self._policy)):
            self._by_name[name] = index
            for host in its:
                hosts.add(host, index)
            self._pause()
        served: list[Served | None] = [None] * len(self._by_name)
        for name in self._by_name if len(served) <= AT_ONCE else self._store.services():
            if (found := self._by_name.get(name)) is not None:
                served[found] = self._service(found)
                self._pause()
        return Table(
            self._policy, self._by_name, hosts, served, self._later, forbids_unknown=self._forbids_unknown, inbound=self._inbound(),
        )

    def commit(self) -> None:
        """Make what the table claimed the state of the mesh."""
        self._store.commit(self.claims, self._by_name, self._pause)

    def _later(self, index: int) -> Served:
        """A service that is called for the first time."""
        with self._store.lock:
            self.claims = self._store.claims()
            served = self._service(index)
            self._store.adopt(self.claims, retune=not self.superseded)
        return served

    def _service(self, index: int) -> Served:
        service = self._policy.services[index]
        self.claims.services.add(service.name)
        own = effective(self._policy, index, None)
        endpoints = self._endpoints(own)
        detector = self._detector(own, endpoints) if endpoints else None
        routes: list[int | None] = [*range(len(service.routes or ())), None]
        plans = [self._plan(own if route is None else effective(self._policy, index, route), endpoints, detector) for route in routes]
        return Served(service, tuple(plans))

    def _plan(self, blocks: Effective, endpoints: tuple[Endpoint, ...], detector: OutlierDetector | None) -> Plan | None:
        service, route = blocks.service.name, None if blocks.route is None else blocks.route.name
        tls = _tls(blocks.service)
        if blocks.mode == "OFF":
            if tls is None:
                return None
            # No mode takes the TLS away: what it protects is not the caller's to give up.
            stats = self._stats(service, route or "*")
            return Plan(service, route, hub=self._hub, stats=stats, rng=self._rng, http2=blocks.service.protocol == "HTTP2", tls=tls)
        retries, concurrency = blocks.retries, blocks.concurrency
        limit = self._limit(blocks)
        enforced = blocks.mode == "ENFORCE"  # OBSERVE changes nothing and sends nothing of its own
        return Plan(
            service,
            route,
            hub=self._hub,
            stats=self._stats(service, route or "*"),
            rng=self._rng,
            mode=blocks.mode,
            respond=self._respond,
            timeout=blocks.timeout,
            idle_timeout=blocks.idle_timeout,
            connect_timeout=blocks.connect_timeout,
            retries=None if retries is None else _retries(retries),
            retry_idempotent=None if retries is None else retries.idempotent,
            budget=self._budget(blocks),
            breaker=self._breaker(blocks),
            limit=None if isinstance(limit, LimitsByValue) else limit,
            by_value=limit if isinstance(limit, LimitsByValue) else None,
            concurrency=self._concurrency(blocks),
            max_pending_wait=None if concurrency is None else concurrency.max_pending_wait,
            endpoints=endpoints or None,
            balancer=None if detector is None else self._balancer(blocks, "", detector),
            split=self._split(blocks.split, blocks, detector),
            fault=self._faults(blocks, "CALL"),
            drill=self._faults(blocks, "ATTEMPT"),
            http2=blocks.service.protocol == "HTTP2",
            classes=None if blocks.classify is None else _classes(blocks.classify),
            fallback=None if blocks.fallback is None else _fallback(blocks.fallback),
            shape=shape(blocks) if enforced else None,
            mirror=self._mirror(blocks) if enforced else None,
            tls=tls,
        )

    def _inbound(self) -> Plan | None:
        """One plan for whatever is served here: a call is sent to no endpoint, and nothing is there to be sent again."""
        block, mode = self._policy.inbound, self._policy.mesh.mode
        if block is None or mode == "OFF":
            return None
        buckets = [self._bucket(INBOUND, "*", number, each) for number, each in enumerate(block.rate_limit or ())]
        limit = _each_of(buckets) if buckets else None
        fault = None if block.fault is None or not self._faults_act else _fault(block.fault, grpc=True)
        at_call = block.fault is not None and block.fault.scope == "CALL"
        return Plan(
            INBOUND,
            None,
            hub=self._hub,
            stats=self._stats(INBOUND, "*"),
            rng=self._rng,
            mode=mode,
            limit=None if isinstance(limit, LimitsByValue) else limit,
            by_value=limit if isinstance(limit, LimitsByValue) else None,
            concurrency=None if block.concurrency is None else self._gate(INBOUND, "*", block.concurrency),
            max_pending_wait=None if block.concurrency is None else block.concurrency.max_pending_wait,
            fault=fault if at_call else None,
            drill=None if at_call else fault,
        )

    # --------------------------------------------------------------------------------------------- state

    def _scope(self, blocks: Effective, block: str) -> str:
        """Whose state a block's is: the route's own where it stands on the route, else the whole service's."""
        return blocks.route.name if blocks.route is not None and blocks.owned_by_route(block) else "*"

    def _stats(self, service: str, route: str) -> Stats:
        return self.claims.claim(("stats", service, route, ""), lambda: Stats(self._store.ledger, service, route), _keep)

    def _breaker(self, blocks: Effective) -> CircuitBreaker | None:
        if blocks.circuit_breaker is None:
            return None
        service, route = blocks.service.name, self._scope(blocks, "circuit_breaker")
        settings = _breaker_settings(blocks.circuit_breaker)
        hub = self._hub

        def notify(old: str, new: str, reason: str, now: float) -> None:
            where = service, None if route == "*" else route
            if old == new:
                hub.report(now, "circuit_would_open", *where, reason=reason)
            else:
                hub.report(now, "circuit_changed", *where, old=old, new=new, reason=reason)

        return self.claims.claim(
            ("circuitBreaker", service, route, ""), lambda: CircuitBreaker(settings, notify), lambda kept: kept.retune(settings),
        )

    def _limit(self, blocks: Effective) -> RateLimit | AllOf | LimitsByValue | None:
        if blocks.rate_limit is None:
            return None
        service, stands_at = blocks.service.name, self._scope(blocks, "rate_limit")
        limits: list[RateLimit | RateLimitByValue] = []
        shared = 0
        for index, each in enumerate(blocks.rate_limit):
            if stands_at == "*" or each.scope == "SERVICE":
                # The n-th limit of scope SERVICE is one bucket, wherever it stands; `check` holds them to be equal.
                limits.append(self._bucket(service, "*", shared, each))
                shared += 1
            else:
                limits.append(self._bucket(service, stands_at, index, each))
        return _each_of(limits)

    def _bucket(self, service: str, owner: str, number: int, block: RateLimitBlock) -> RateLimit | RateLimitByValue:
        figures = (block.requests, block.per, block.burst or block.requests)
        by = block.descriptor
        if by is None:
            return self.claims.claim(
                ("rateLimit", service, owner, str(number)), lambda: RateLimit(*figures), lambda kept: kept.retune(*figures),
            )
        return self.claims.claim(
            ("rateLimit", service, owner, f"{number} by {by.header}"),
            lambda: RateLimitByValue(by.header, *figures, by.max_values),
            lambda kept: kept.retune(*figures, by.max_values),
        )

    def _concurrency(self, blocks: Effective) -> Concurrency | None:
        block = blocks.concurrency
        return None if block is None else self._gate(blocks.service.name, self._scope(blocks, "concurrency"), block)

    def _gate(self, service: str, owner: str, block: ConcurrencyBlock) -> Concurrency:
        figures = (block.max_requests, block.max_pending)
        return self.claims.claim(
            ("concurrency", service, owner, ""), lambda: Concurrency(*figures), lambda kept: kept.retune(*figures),
        )

    def _budget(self, blocks: Effective) -> RetryBudget | None:
        block = blocks.retry_budget
        if block is None:
            return None
        figures = (block.percent, block.min_retries_per_second, block.ttl)
        key: Key = ("retryBudget", blocks.service.name, "*", "")
        return self.claims.claim(key, lambda: RetryBudget(*figures), lambda kept: kept.retune(*figures))

    def _endpoints(self, blocks: Effective) -> tuple[Endpoint, ...]:
        return tuple(self._endpoint(blocks, each.address, each.labels) for each in blocks.service.endpoints or ())

    def _endpoint(self, blocks: Effective, address: str, labels: dict[str, str]) -> Endpoint:
        slow_start = None if blocks.load_balancer.slow_start is None else _slow_start(blocks.load_balancer.slow_start)
        key: Key = ("endpoint", blocks.service.name, "*", address)
        return self.claims.claim(key, lambda: Endpoint(address, labels, slow_start), lambda kept: kept.retune(labels, slow_start))

    def _detector(self, blocks: Effective, endpoints: tuple[Endpoint, ...]) -> OutlierDetector:
        settings = None if blocks.outlier_detection is None else _outlier_settings(blocks.outlier_detection)
        service, hub = blocks.service.name, self._hub

        def notify(name: str, endpoint: Endpoint, now: float, detail: dict[str, Any]) -> None:
            hub.report(now, name, service, endpoint=endpoint.address, **detail)

        return self.claims.claim(
            ("outlierDetection", service, "*", ""),
            lambda: OutlierDetector(settings, endpoints, notify),
            lambda kept: kept.retune(settings, endpoints),
        )

    def _balancer(self, blocks: Effective, subset: str, detector: OutlierDetector) -> Balancer:
        service = blocks.service
        labels = next((each.labels for each in service.subsets or () if each.name == subset), {})
        # The kept endpoints carry their old labels until the commit, so the new ones are read from the policy.
        members = [
            self._endpoint(blocks, each.address, each.labels)
            for each in service.endpoints or ()
            if labels.items() <= each.labels.items()
        ]
        policy = blocks.load_balancer.policy
        return self.claims.claim(
            ("balancer", service.name, "*", subset),
            lambda: Balancer(policy, members, detector, self._rng),
            lambda kept: kept.retune(policy, members),
        )

    def _faults(self, blocks: Effective, scope: Literal["CALL", "ATTEMPT"]) -> Fault | Faults | None:
        """What stands at one scope: the injection that came last, those before it, the policy's own."""
        if not self._faults_act:
            return None
        service, route = blocks.service.name, None if blocks.route is None else blocks.route.name
        found = [each.fault for each in reversed(self._injections) if each.scope == scope and each.applies_to(service, route)]
        if blocks.fault is not None and blocks.fault.scope == scope:
            found.append(_fault(blocks.fault, grpc=blocks.service.protocol == "GRPC"))
        if len(found) < 2:
            return found[0] if found else None
        return Faults(tuple(found))

    def _mirror(self, blocks: Effective) -> Mirror | None:
        """The copies of a call: to the endpoints of another service and within its limits, with the call's own timeout."""
        block = blocks.mirror
        if block is None or not block.percent:
            return None
        target = effective(self._policy, self._by_name[block.service], None)
        name, endpoints = block.service, self._endpoints(target)
        enforced = target.mode == "ENFORCE"
        plan = Plan(
            name,
            MIRROR_ROUTE,
            hub=self._hub,
            stats=self._stats(name, MIRROR_ROUTE),
            rng=self._rng,
            timeout=blocks.timeout or _MIRROR_TIMEOUT,
            connect_timeout=target.connect_timeout if enforced else None,
            concurrency=self._concurrency(target) if enforced else None,
            endpoints=endpoints,
            balancer=self._balancer(target, block.subset or "", self._detector(target, endpoints)),
            http2=target.service.protocol == "HTTP2",
            classes=None if target.classify is None else _classes(target.classify),
            tls=_tls(target.service),
        )
        return Mirror(plan, block.percent / 100)

    def _split(self, targets: list[SplitTarget] | None, blocks: Effective, detector: OutlierDetector | None) -> Split | None:
        if not targets or detector is None:
            return None
        total = sum(target.weight for target in targets)
        shares, bound = [], 0
        for target in targets:
            bound += target.weight
            shares.append((bound / total, self._balancer(blocks, target.subset, detector)))
        return Split([share for share, target in zip(shares, targets, strict=True) if target.weight])


def _tls(service: Service) -> Tls | None:
    block = service.tls
    if block is None or block.mode == "DISABLE":
        return None
    return Tls(block.mode == "MUTUAL", frozenset(block.identities or ()), frozenset(each.lower() for each in block.dns_sans or ()))


#: Seconds that a mirrored copy may take where its call has no timeout. Envoy: 15 s, its routes' default.
_MIRROR_TIMEOUT = 15.0


def _each_of(limits: list[RateLimit | RateLimitByValue]) -> RateLimit | AllOf | LimitsByValue:
    """Several limits as one, which asks them all."""
    plain = [each for each in limits if isinstance(each, RateLimit)]
    if len(plain) < len(limits):
        return LimitsByValue(limits)
    return plain[0] if len(plain) == 1 else AllOf(plain)


def _keep(state: object) -> None:
    """Nothing to retune."""


def _retries(block: Retries) -> RetryPlan:
    return RetryPlan(
        max_retries=block.max_retries,
        words=mask(*(each for each in block.retry_on if isinstance(each, str))),
        statuses=frozenset(each for each in block.retry_on if isinstance(each, int)),
        per_try_timeout=block.per_try_timeout,
        base=block.backoff.base,
        longest=block.backoff.base * 10 if block.backoff.max is None else block.backoff.max,
        retry_after_max=None if block.retry_after is None else block.retry_after.max,
    )


def _classes(block: Classify) -> Classes:
    headers = [(name, _header_fails(wanted)) for name, wanted in (block.failure_headers or {}).items()]
    return Classes(block.failure_statuses or (), block.success_statuses or (), headers)


def _header_fails(wanted: StringMatch) -> Callable[[str | None], bool]:
    if wanted.present is not None:
        present = wanted.present
        return lambda value: (value is not None) is present
    matches = comparison(wanted)
    return lambda value: value is not None and matches(value)


def _fallback(block: FallbackBlock) -> Fallback:
    return Fallback(frozenset(block.on), block.status, [*(block.headers or {}).items()], block.body.encode())


def _fault(block: FaultBlock, *, grpc: bool) -> Fault:
    abort, delay = block.abort, block.delay
    status = None if abort is None else abort.http_status
    if grpc and abort is not None and abort.grpc_status is not None:
        status = GRPC_AS_HTTP[abort.grpc_status]
    return Fault(
        abort_status=status,
        abort_grpc=None if abort is None else abort.grpc_status,
        abort_share=0.0 if abort is None else abort.percent / 100,
        delay=0.0 if delay is None else delay.fixed_delay,
        delay_share=0.0 if delay is None else delay.percent / 100,
    )


def _breaker_settings(block: BreakerBlock) -> BreakerSettings:
    return BreakerSettings(
        failure_rate=block.failure_rate_threshold,
        slow_rate=block.slow_call_rate_threshold,
        slow_seconds=block.slow_call_duration_threshold,
        consecutive=block.consecutive_failures,
        time_based=block.sliding_window.type == "TIME_BASED",
        window_size=block.sliding_window.size,
        minimum_calls=block.minimum_number_of_calls,
        wait_open=block.wait_duration_in_open_state,
        half_open_permits=block.permitted_number_of_calls_in_half_open_state,
        count_throttled=block.count_throttled,
    )


def _slow_start(block: SlowStartBlock) -> SlowStart:
    return SlowStart(block.window, block.aggression, block.min_weight_percent / 100)


def _outlier_settings(block: OutlierDetection) -> OutlierSettings:
    rate, percentage = block.success_rate, block.failure_percentage
    return OutlierSettings(
        consecutive_5xx=block.consecutive_5xx_errors,
        consecutive_gateway=block.consecutive_gateway_errors,
        consecutive_local=block.consecutive_local_origin_failures,
        split_local=block.split_external_local_origin_errors,
        interval=block.interval,
        base=block.base_ejection_time,
        longest=block.max_ejection_time,
        max_percent=block.max_ejection_percent,
        panic=block.panic_threshold,
        success_rate=None if rate is None else SuccessRate(rate.minimum_hosts, rate.request_volume, rate.stdev_factor),
        failure_percentage=None if percentage is None else FailurePercentage(
            percentage.threshold, percentage.minimum_hosts, percentage.request_volume,
        ),
    )

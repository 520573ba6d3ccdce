"""Who may do what: Istio's AuthorizationPolicy, decided as Envoy's RBAC decides what Istio makes of it. Pure.

    1  a DENY policy matches                    denied
    2  no ALLOW policy                          allowed
    3  an ALLOW policy matches                  allowed
    4  otherwise                                denied

A policy matches when one of its rules does; a rule, when one of ``from``, one of ``to`` and all of ``when`` do; a source or an operation,
when every key that it has does; a key, when one of its values does, and a ``not`` key, when none does. A policy without rules never
matches; a rule without keys always does. AUDIT only says that it matched. A policy of ``mode: OBSERVE`` stands beside all that: what
such policies would have decided on their own is in ``Decision.shadow`` (Envoy: shadow rules).

What a request does not have (a caller without identity, a header that is absent) matches no value, and so every ``not``: as in Envoy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from resilmesh.policy.inbound import AuthorizationPolicy, AuthorizationRule, Condition, Operation, Source

V = TypeVar("V")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class InboundRequest:
    """What rules are held against."""

    def __init__(
        self, method: str, path: str, *, host: str = "", headers: Mapping[str, Sequence[str]] | None = None, principal: str | None = None,
        source_ip: str | None = None, remote_ip: str | None = None, destination_ip: str | None = None, destination_port: int | None = None,
        sni: str | None = None,
    ) -> None:
        self.method = method
        #: Normalised (``paths``), without the query. Of gRPC ``/package.Service/Method``.
        self.path = path
        #: As the caller wrote it, port included.
        self.host = host
        #: The values of each, by its name in lower case. One that matches is enough, as in Envoy 1.40.
        self.headers: Mapping[str, Sequence[str]] = headers or {}
        #: The caller's SPIFFE ID without its scheme; ``None``: it has proved none.
        self.principal = principal
        self._source_ip, self._remote_ip, self._destination_ip = source_ip, remote_ip, destination_ip
        self.destination_port = destination_port
        self.sni = sni

    @cached_property
    def source_ip(self) -> Address | None:
        """Of the connection."""
        return _address(self._source_ip)

    @cached_property
    def remote_ip(self) -> Address | None:
        """Of the original caller."""
        return _address(self._remote_ip or self._source_ip)

    @cached_property
    def destination_ip(self) -> Address | None:
        """Of this workload."""
        return _address(self._destination_ip)


class Decision(NamedTuple):
    """What became of a request, and by which rule of which policy (``rule`` counts from 0)."""

    allowed: bool
    policy: str | None
    rule: int | None
    reason: str
    audited: tuple[str, ...] = ()
    """AUDIT policies that matched."""
    shadow: Decision | None = None
    """What the policies of ``mode: OBSERVE`` would have decided; ``None``: there are none."""

    def told(self) -> dict[str, Any]:
        """As the event ``authorized`` has it."""
        shadow = self.shadow
        return {
            "allowed": self.allowed, "policy": self.policy, "rule": self.rule, "audited": list(self.audited),
            "shadow": None if shadow is None else {"allowed": shadow.allowed, "policy": shadow.policy, "rule": shadow.rule},
        }


class Authorizer:
    """The authorization policies of a workload, compiled."""

    def __init__(self, policies: Sequence[AuthorizationPolicy]) -> None:
        self._enforced = _Policies([each for each in policies if each.mode == "ENFORCE" and each.action != "AUDIT"])
        observed = [each for each in policies if each.mode == "OBSERVE" and each.action != "AUDIT"]
        self._observed = _Policies(observed) if observed else None
        self._audited = [_Compiled([each]) for each in policies if each.action == "AUDIT"]
        #: What the rules ask about that not every server tells: ``hosts``, ``ports``, ``destination.ip``, ``connection.sni``.
        self.asks_about = frozenset(_asked(policies))

    def decide(self, request: InboundRequest) -> Decision:
        """Whether a request may pass. Never raises."""
        decision = self._enforced.decide(request)
        if not self._audited and self._observed is None:
            return decision
        audited = tuple(found[0] for each in self._audited if (found := each.first(request)) is not None)
        shadow = None if self._observed is None else self._observed.decide(request)
        return decision._replace(audited=audited, shadow=shadow)


def _asked(policies: Sequence[AuthorizationPolicy]) -> Iterator[str]:
    for rule in (rule for policy in policies for rule in policy.rules or ()):
        for operation in rule.to or ():
            if operation.hosts or operation.not_hosts:
                yield "hosts"
            if operation.ports or operation.not_ports:
                yield "ports"
        for condition in rule.when or ():
            if condition.key.startswith(("destination.", "connection.")):
                yield condition.key


class _Policies:
    def __init__(self, policies: Sequence[AuthorizationPolicy]) -> None:
        self._deny = _Compiled([each for each in policies if each.action == "DENY"])
        allow = [each for each in policies if each.action == "ALLOW"]
        self._allow = _Compiled(allow) if allow else None

    def decide(self, request: InboundRequest) -> Decision:
        found = self._deny.first(request)
        if found is not None:
            return Decision(False, *found, f"rule {found[1]} of the DENY policy {found[0]!r} matches")
        if self._allow is None:
            return Decision(True, None, None, "no DENY policy matches, and there is no ALLOW policy")
        found = self._allow.first(request)
        if found is not None:
            return Decision(True, *found, f"rule {found[1]} of the ALLOW policy {found[0]!r} matches")
        return Decision(False, None, None, "no ALLOW policy matches, and there are some")


# ------------------------------------------------------------------------------------------------- policies

Test = Callable[[InboundRequest], bool]


class _Rule(NamedTuple):
    policy: str
    number: int
    test: Test


class _Compiled:
    """Rules of one action, in order. Those that name exact principals, or else exact paths, are found by these: of a thousand rules
    few are then held against a request."""

    def __init__(self, policies: Sequence[AuthorizationPolicy]) -> None:
        self._rules: list[_Rule] = []
        self._by_principal: dict[str, list[int]] = {}
        self._by_path: dict[str, list[int]] = {}
        self._others: list[int] = []
        for policy in policies:
            for number, rule in enumerate(policy.rules or ()):
                self._add(rule)
                self._rules.append(_Rule(policy.name, number, _of_rule(rule)))

    def _add(self, rule: AuthorizationRule) -> None:
        index = len(self._rules)
        for keys, found in (
            (_exact(each.principals for each in rule.from_ or ()), self._by_principal),
            (_exact(each.paths for each in rule.to or ()), self._by_path),
        ):
            if keys:
                for key in keys:
                    found.setdefault(key, []).append(index)
                return
        self._others.append(index)

    def first(self, request: InboundRequest) -> tuple[str, int] | None:
        """The policy, and the number in it, of the first rule that matches."""
        found: Sequence[int] = self._by_path.get(request.path, ())
        if request.principal is not None and request.principal in self._by_principal:
            found = [*self._by_principal[request.principal], *found]
        candidates = sorted([*found, *self._others]) if found else self._others
        for index in candidates:
            rule = self._rules[index]
            if rule.test(request):
                return rule.policy, rule.number
        return None


def _exact(lists: Iterator[list[str] | None]) -> set[str]:
    """Every value of some lists, if all there are exact ones; else nothing."""
    found: set[str] = set()
    for values in lists:
        if values is None or any("*" in value or "{" in value for value in values):
            return set()
        found.update(values)
    return found


# ------------------------------------------------------------------------------------------- rules to tests


def _of_rule(rule: AuthorizationRule) -> Test:
    tests = []
    if rule.from_ is not None:
        tests.append(_any([_of_source(each) for each in rule.from_]))
    if rule.to is not None:
        tests.append(_any([_of_operation(each) for each in rule.to]))
    tests += [_of_condition(each) for each in rule.when or ()]
    return _all(tests)


def _of_source(source: Source) -> Test:
    return _all([
        *_both(source.principals, source.not_principals, _principal),
        *_both(source.namespaces, source.not_namespaces, _namespace),
        *_both(source.ip_blocks, source.not_ip_blocks, _ip("source_ip")),
        *_both(source.remote_ip_blocks, source.not_remote_ip_blocks, _ip("remote_ip")),
    ])


def _of_operation(operation: Operation) -> Test:
    return _all([
        *_both(operation.methods, operation.not_methods, _text("method")),
        *_both(operation.paths, operation.not_paths, _path),
        *_both(operation.hosts, operation.not_hosts, _host),
        *_both(operation.ports, operation.not_ports, _port),
    ])


def _of_condition(condition: Condition) -> Test:
    make = _ATTRIBUTES.get(condition.key)
    if make is None:
        make = _header(condition.key.removeprefix("request.headers[").removesuffix("]").lower())
    return _all(list(_both(condition.values, condition.not_values, make)))


def _both(values: Sequence[V] | None, not_values: Sequence[V] | None, make: Callable[[V], Test]) -> Iterator[Test]:
    if values is not None:
        yield _any([make(each) for each in values])
    if not_values is not None:
        none_of = _any([make(each) for each in not_values])
        yield lambda request: not none_of(request)


def _all(tests: Sequence[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda request: all(test(request) for test in tests)


def _any(tests: Sequence[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda request: any(test(request) for test in tests)


# ---------------------------------------------------------------------------------------------- one value


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Exact, ``prefix*``, ``*suffix``, or ``*`` for whatever is there and not empty."""
    if pattern == "*":
        return bool
    if pattern.startswith("*"):
        suffix = pattern[1:]
        return lambda text: text.endswith(suffix)
    if pattern.endswith("*"):
        prefix = pattern[:-1]
        return lambda text: text.startswith(prefix)
    return lambda text: text == pattern


def _text(attribute: str) -> Callable[[str], Test]:
    def make(pattern: str) -> Test:
        matches = _matcher(pattern)
        return lambda request: (found := getattr(request, attribute)) is not None and matches(found)

    return make


def _header(name: str) -> Callable[[str], Test]:
    def make(pattern: str) -> Test:
        if pattern == "*":  # it is there, empty or not
            return lambda request: name in request.headers
        matches = _matcher(pattern)
        return lambda request: any(matches(value) for value in request.headers.get(name, ()))

    return make


def _principal(pattern: str) -> Test:
    # Of a suffix Istio holds the whole URI against it, of a prefix what follows the scheme.
    matches = _matcher(pattern)
    return lambda request: request.principal is not None and matches(request.principal)


def _namespace(pattern: str) -> Test:
    # Istio: the URI against the expression `.*/ns/PATTERN/.*`, each asterisk in it as `.*`.
    expression = re.compile(".*/ns/" + ".*".join(map(re.escape, pattern.split("*"))) + "/.*")
    return lambda request: request.principal is not None and expression.fullmatch(request.principal) is not None


def _host(pattern: str) -> Test:
    matches = _matcher(pattern.lower())
    return lambda request: matches(request.host.lower())


def _port(port: int) -> Test:
    return lambda request: request.destination_port == port


def _path(pattern: str) -> Test:
    if "{" in pattern:
        expression = template(pattern)
        return lambda request: expression.fullmatch(request.path) is not None
    return _text("path")(pattern)


#: What an operator of a template stands for: the characters of a segment (Envoy: uri_template_internal.cc).
_LITERAL = r"a-zA-Z0-9\-._~%!$&'()+,;:@="


def template(pattern: str) -> re.Pattern[str]:
    """A path with ``{*}`` for one segment and ``{**}`` for any number. Raises ``ValueError`` for one that Istio refuses."""
    made, many = [], False
    for segment in pattern.split("/"):
        if segment in ("{*}", "{**}"):
            if many:
                raise ValueError("{**} is not the last of its operators")
            many = segment == "{**}"
            made.append(f"[{_LITERAL}/]*" if many else f"[{_LITERAL}]+")
        elif any(each in segment for each in "{}*"):
            raise ValueError(f"the segment {segment!r} is neither plain nor {{*}} nor {{**}}")
        else:
            made.append(re.escape(segment))
    return re.compile("/".join(made))


def _ip(attribute: str) -> Callable[[str], Test]:
    def make(block: str) -> Test:
        network = ipaddress.ip_network(block, strict=False)
        return lambda request: (found := getattr(request, attribute)) is not None and found.version == network.version and found in network

    return make


def ip_address(text: str) -> Address:
    """An IPv4 address that came over an IPv6 socket is an IPv4 address. Raises ``ValueError``."""
    found = ipaddress.ip_address(text.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def _address(text: str | None) -> Address | None:
    try:
        return None if text is None else ip_address(text)
    except ValueError:
        return None


def _port_of_text(text: str) -> Test:
    return lambda request: str(request.destination_port) == text


_ATTRIBUTES: dict[str, Callable[[str], Test]] = {
    "source.ip": _ip("source_ip"), "remote.ip": _ip("remote_ip"), "destination.ip": _ip("destination_ip"),
    "source.namespace": _namespace, "source.principal": _principal, "destination.port": _port_of_text, "connection.sni": _text("sni"),
}

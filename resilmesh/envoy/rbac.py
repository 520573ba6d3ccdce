"""Authorization as Envoy's RBAC filters, the way Istio writes them (pilot/pkg/security/authz).

    DENY, ALLOW             a filter each, in this order: whom the first denies the second does not see
    AUDIT                   a filter with the action LOG, first
    mode: OBSERVE           the same as shadow rules, which only count

A rule becomes a policy of Envoy's: ``to`` its permissions, ``from`` its principals, and each condition of ``when`` a part of either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from resilmesh.envoy.match import TYPE

if TYPE_CHECKING:
    from resilmesh.policy.inbound import AuthorizationPolicy, AuthorizationRule, Condition, Operation, Source

Json = dict[str, Any]

_FILTER = "envoy.filters.http.rbac"
_URI = "spiffe://"
#: Attributes of the request rather than of its caller.
_PERMITTING = ("destination.", "connection.", "request.")


def rbac_filters(policies: Sequence[AuthorizationPolicy]) -> list[Json]:
    """The filters, in order."""
    made = []
    for mode, prefix in (("ENFORCE", ""), ("OBSERVE", "observe_")):
        for action, name in (("AUDIT", "LOG"), ("DENY", "DENY"), ("ALLOW", "ALLOW")):
            chosen = [each for each in policies if (each.action, each.mode) == (action, mode)]
            # ALLOW policies without a rule allow nothing, which is something; the others then do nothing.
            if not chosen or (action == "AUDIT" and mode == "OBSERVE"):
                continue
            rules: Json = {"action": name, "policies": dict(_policies(chosen))}
            key = "shadow_rules" if prefix else "rules"
            config = {"@type": TYPE + "envoy.extensions.filters.http.rbac.v3.RBAC", key: rules}
            if prefix:
                config["shadow_rules_stat_prefix"] = prefix + name.lower() + "_"
            made.append({"name": f"{_FILTER}.{prefix}{name.lower()}", "typed_config": config})
    return made


def _policies(policies: Sequence[AuthorizationPolicy]) -> Iterator[tuple[str, Json]]:
    for policy in policies:
        for number, rule in enumerate(policy.rules or ()):
            # Of several that match Envoy names the first by name.
            yield f"{policy.name}[{number}]", _of_rule(rule)


def _of_rule(rule: AuthorizationRule) -> Json:
    permitting = [each for each in rule.when or () if each.key.startswith(_PERMITTING)]
    naming = [each for each in rule.when or () if each not in permitting]
    operations = [list(_of_operation(each)) for each in rule.to or ()] or [[]]
    sources = [list(_of_source(each)) for each in rule.from_ or ()] or [[]]
    return {
        "permissions": [_all([*each, *_conditions(permitting)], "rules") for each in operations],
        "principals": [_all([*each, *_conditions(naming)], "ids") for each in sources],
    }


def _of_operation(operation: Operation) -> Iterator[Json]:
    yield from _both(operation.hosts, operation.not_hosts, _host, "rules")
    yield from _both(operation.methods, operation.not_methods, _header(":method"), "rules")
    yield from _both(operation.paths, operation.not_paths, _path, "rules")
    yield from _both(operation.ports, operation.not_ports, lambda port: {"destination_port": int(port)}, "rules")


def _of_source(source: Source) -> Iterator[Json]:
    yield from _both(source.principals, source.not_principals, _principal, "ids")
    yield from _both(source.namespaces, source.not_namespaces, _namespace, "ids")
    yield from _both(source.ip_blocks, source.not_ip_blocks, _cidr("direct_remote_ip"), "ids")
    yield from _both(source.remote_ip_blocks, source.not_remote_ip_blocks, _cidr("remote_ip"), "ids")


def _conditions(conditions: Sequence[Condition]) -> Iterator[Json]:
    for each in conditions:
        kind = "rules" if each.key.startswith(_PERMITTING) else "ids"
        make = _ATTRIBUTES.get(each.key) or _header(each.key.removeprefix("request.headers[").removesuffix("]"))
        yield from _both(each.values, each.not_values, make, kind)


def _both(values: Sequence[Any] | None, not_values: Sequence[Any] | None, make: Callable[[Any], Json], kind: str) -> Iterator[Json]:
    if values is not None:
        yield _any([make(each) for each in values], kind)
    if not_values is not None:
        yield {"not_rule" if kind == "rules" else "not_id": _any([make(each) for each in not_values], kind)}


def _all(parts: Sequence[Json], kind: str) -> Json:
    if not parts:
        return {"any": True}
    return parts[0] if len(parts) == 1 else {f"and_{kind}": {kind: list(parts)}}


def _any(parts: Sequence[Json], kind: str) -> Json:
    return parts[0] if len(parts) == 1 else {f"or_{kind}": {kind: list(parts)}}


# ------------------------------------------------------------------------------------------------- values


def _matcher(pattern: str, before: str = "") -> Json:
    if pattern == "*":
        return {"safe_regex": {"regex": ".+"}}
    if pattern.startswith("*"):
        return {"suffix": pattern[1:]}
    if pattern.endswith("*"):
        return {"prefix": before + pattern[:-1]}
    return {"exact": before + pattern}


def _header(name: str) -> Callable[[str], Json]:
    def make(pattern: str) -> Json:
        if pattern == "*":
            return {"header": {"name": name, "present_match": True}}
        return {"header": {"name": name, "string_match": _matcher(pattern)}}

    return make


def _host(pattern: str) -> Json:
    expression = ".*".join(map(re.escape, pattern.split("*"))) if pattern != "*" else ".+"
    return {"header": {"name": ":authority", "string_match": {"safe_regex": {"regex": f"(?i){expression}"}}}}


def _path(pattern: str) -> Json:
    if "{" not in pattern:
        return {"url_path": {"path": _matcher(pattern)}}
    template = pattern.replace("{**}", "**").replace("{*}", "*")
    return {
        "uri_template": {
            "name": "envoy.path.match.uri_template.uri_template_matcher",
            "typed_config": {
                "@type": TYPE + "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": template,
            },
        },
    }


def _principal(pattern: str) -> Json:
    return {"authenticated": {"principal_name": _matcher(pattern, _URI)}}


def _namespace(pattern: str) -> Json:
    expression = ".*/ns/" + ".*".join(map(re.escape, pattern.split("*"))) + "/.*"
    return {"authenticated": {"principal_name": {"safe_regex": {"regex": expression}}}}


def _cidr(key: str) -> Callable[[str], Json]:
    def make(block: str) -> Json:
        address, slash, length = block.partition("/")
        return {key: {"address_prefix": address, "prefix_len": int(length) if slash else 128 if ":" in address else 32}}

    return make


_ATTRIBUTES: dict[str, Callable[[str], Json]] = {
    "source.ip": _cidr("direct_remote_ip"), "remote.ip": _cidr("remote_ip"), "source.namespace": _namespace,
    "source.principal": _principal, "destination.ip": _cidr("destination_ip"),
    "destination.port": lambda port: {"destination_port": int(port)},
    "connection.sni": lambda name: {"requested_server_name": _matcher(name)},
}

"""The authorizer against a direct reading of Istio's rules: the same policies, read anew for every request, without any index."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from resilmesh.identity.authz import Authorizer, InboundRequest
from resilmesh.policy.inbound import AuthorizationPolicy

# ------------------------------------------------------------------------------------------ a direct reading


def matches(pattern: str, text: str | None, *, fold: bool = False) -> bool:
    if text is None:
        return False
    if fold:
        pattern, text = pattern.lower(), text.lower()
    if pattern == "*":
        return text != ""
    if pattern.startswith("*"):
        return text.endswith(pattern[1:])
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return text == pattern


def within(block: str, address: Any) -> bool:
    return address is not None and address in ipaddress.ip_network(block, strict=False)


def path_matches(pattern: str, path: str) -> bool:
    if "{" not in pattern:
        return matches(pattern, path)
    one, many = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+", r"[a-zA-Z0-9\-._~%!$&'()+,;:@=/]*"
    return re.fullmatch(re.escape(pattern).replace(r"\{\*\*\}", many).replace(r"\{\*\}", one), path) is not None


def namespace_matches(pattern: str, principal: str | None) -> bool:
    expression = ".*/ns/" + re.escape(pattern).replace(r"\*", ".*") + "/.*"
    return principal is not None and re.fullmatch(expression, "spiffe://" + principal) is not None


def value(key: str, wanted: Any, request: InboundRequest) -> bool:
    """Whether one value of one key holds."""
    if key == "principals":
        return matches(wanted, request.principal)
    if key == "namespaces":
        return namespace_matches(wanted, request.principal)
    if key == "ip_blocks":
        return within(wanted, request.source_ip)
    if key == "remote_ip_blocks":
        return within(wanted, request.remote_ip)
    if key == "methods":
        return matches(wanted, request.method)
    if key == "paths":
        return path_matches(wanted, request.path)
    if key == "hosts":
        return matches(wanted, request.host, fold=True)
    if key == "ports":
        return bool(wanted == request.destination_port)
    if key == "request.headers[X-Role]":
        values = request.headers.get("x-role")
        return values is not None and (wanted == "*" or any(matches(wanted, each) for each in values))
    assert key == "source.namespace"
    return namespace_matches(wanted, request.principal)


KEYS = ("principals", "namespaces", "ip_blocks", "remote_ip_blocks", "methods", "paths", "hosts", "ports")


def block_holds(block: Any, request: InboundRequest) -> bool:
    for key in KEYS:
        wanted, unwanted = getattr(block, key, None), getattr(block, f"not_{key}", None)
        if wanted is not None and not any(value(key, each, request) for each in wanted):
            return False
        if unwanted is not None and any(value(key, each, request) for each in unwanted):
            return False
    return True


def rule_holds(rule: Any, request: InboundRequest) -> bool:
    for blocks in (rule.from_, rule.to):
        if blocks is not None and not any(block_holds(each, request) for each in blocks):
            return False
    for condition in rule.when or ():
        if condition.values is not None and not any(value(condition.key, each, request) for each in condition.values):
            return False
        if condition.not_values is not None and any(value(condition.key, each, request) for each in condition.not_values):
            return False
    return True


def allowed(policies: list[AuthorizationPolicy], mode: str, request: InboundRequest) -> bool:
    of = {
        action: [each for each in policies if each.action == action and each.mode == mode] for action in ("ALLOW", "DENY")
    }
    if any(rule_holds(rule, request) for policy in of["DENY"] for rule in policy.rules or ()):
        return False
    return not of["ALLOW"] or any(rule_holds(rule, request) for policy in of["ALLOW"] for rule in policy.rules or ())


# ------------------------------------------------------------------------------------------------ any policy

PRINCIPALS = ["shop.example/ns/prod/sa/web", "shop.example/ns/*", "*/sa/web", "*", "*web*", "shop.example/web"]
PATHS = ["/a", "/a*", "*/b", "*", "/a/{*}", "/a/{**}", "/{*}/b", "/{*}/b/{**}", "/a/b"]
VALUES: dict[str, list[Any]] = {
    "principals": PRINCIPALS, "namespaces": ["prod", "p*", "*", "*d", "x"], "ip_blocks": ["10.0.0.0/8", "10.1.2.3", "::/0", "0.0.0.0/0"],
    "remote_ip_blocks": ["10.0.0.0/8", "192.0.2.1"], "methods": ["GET", "P*", "*", "*T"], "paths": PATHS,
    "hosts": ["A.svc", "*.svc", "a*", "*", "b"], "ports": [80, 443],
}


def some(values: list[Any]) -> Any:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


def blocks(keys: tuple[str, ...]) -> Any:
    choices = {f"{prefix}{key}": some(VALUES[key]) for key in keys for prefix in ("", "not_")}
    return st.lists(st.fixed_dictionaries({}, optional=choices), min_size=1, max_size=2)


def conditions() -> Any:
    made = [
        st.fixed_dictionaries({"key": st.just(key), word: some(values)})
        for key, values in (("request.headers[X-Role]", ["admin", "a*", "*", "*r"]), ("source.namespace", VALUES["namespaces"]))
        for word in ("values", "not_values")
    ]
    return st.lists(st.one_of(made), min_size=1, max_size=2)


RULES = st.fixed_dictionaries({}, optional={"from_": blocks(KEYS[:4]), "to": blocks(KEYS[4:]), "when": conditions()})
POLICIES = st.lists(st.fixed_dictionaries({
    "name": st.just("p"), "action": st.sampled_from(["ALLOW", "DENY", "AUDIT"]), "mode": st.sampled_from(["ENFORCE", "ENFORCE", "OBSERVE"]),
}, optional={"rules": st.lists(RULES, max_size=3)}), max_size=4)
REQUESTS = st.builds(
    InboundRequest, st.sampled_from(["GET", "POST", "PUT", ""]), st.sampled_from(["/a", "/a/", "/a/b", "/x/b", "/x/b/c/d", "/", "/b"]),
    host=st.sampled_from(["a.svc", "A.SVC", "b", ""]),
    principal=st.sampled_from([None, *[each for each in PRINCIPALS if "*" not in each], "o/ns/prod/sa/x"]),
    headers=st.sampled_from([{}, {"x-role": ["admin"]}, {"x-role": [""]}, {"x-role": ["user", "admin"]}]),
    source_ip=st.sampled_from([None, "10.1.2.3", "192.0.2.1", "::1", "::ffff:10.1.2.3"]),
    remote_ip=st.sampled_from([None, "10.9.9.9", "192.0.2.1"]),
    destination_port=st.sampled_from([None, 80, 443]),
)


@settings(max_examples=400)
@given(POLICIES, REQUESTS)
def test_it_agrees(written: list[dict[str, Any]], request: InboundRequest) -> None:
    policies = [AuthorizationPolicy.model_validate(each) for each in written]
    decision = Authorizer(policies).decide(request)
    assert decision.allowed is allowed(policies, "ENFORCE", request)
    observed = [each for each in policies if each.mode == "OBSERVE" and each.action != "AUDIT"]
    assert (decision.shadow is not None) is bool(observed)
    if decision.shadow is not None:
        assert decision.shadow.allowed is allowed(policies, "OBSERVE", request)
    audits = sum(any(rule_holds(rule, request) for rule in each.rules or ()) for each in policies if each.action == "AUDIT")
    assert len(decision.audited) == audits
    if decision.policy is None:
        assert decision.rule is None
    else:
        matched = [each for each in policies if each.mode == "ENFORCE" and each.action == ("ALLOW" if decision.allowed else "DENY")]
        assert any(rule_holds(each.rules[decision.rule], request) for each in matched if each.rules and decision.rule is not None
                   and decision.rule < len(each.rules))

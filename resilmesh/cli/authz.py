"""``resilmesh authz check --policy FILE METHOD PATH``: whether a request would be let in, and by which rule."""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from resilmesh.errors import PolicyError

if TYPE_CHECKING:
    from resilmesh.identity.authz import Decision
    from resilmesh.identity.spiffe import SpiffeId
    from resilmesh.policy.load import Loaded

#: What a method, or a header's name, is made of (RFC 9110, section 5.6.2).
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words."""
    parser.add_argument("step", metavar="check", choices=["check"], help="what to do: check")
    parser.add_argument("--policy", metavar="FILE", required=True, help="a policy, YAML or JSON; one that cannot be used: exit status 2")
    parser.add_argument("--as", metavar="SPIFFE-ID", dest="caller", type=_spiffe_id, help="who calls; absent: somebody without an identity")
    parser.add_argument(
        "--header", metavar="NAME=VALUE", action="append", default=[], type=_header, help="a request header; may be repeated",
    )
    parser.add_argument("--host", help="the host that is called, as the Host header has it")
    parser.add_argument("--port", type=_port, help="the port that is called")
    parser.add_argument("--source-ip", type=_address, metavar="ADDRESS", help="where the connection comes from")
    parser.add_argument("--remote-ip", type=_address, metavar="ADDRESS", help="the original caller (default: the connection's)")
    parser.add_argument("--destination-ip", type=_address, metavar="ADDRESS", help="the address that is called")
    parser.add_argument("--sni", help="the host that TLS was asked for")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("method", metavar="METHOD", type=_method, help="such as GET; of gRPC POST")
    parser.add_argument("path", metavar="PATH", help="such as /v1/items; of gRPC /package.Service/Method")


def run(options: argparse.Namespace) -> int:
    """Print the decision. 0: allowed. 1: denied. 2: the policy cannot be used, which a script must not take for a denial."""
    from resilmesh.policy.check import check
    from resilmesh.policy.load import load_file

    try:
        loaded = load_file(options.policy)
        mistakes = [each for each in check(loaded) if each.severity == "error"]
        if mistakes:
            raise PolicyError(mistakes)
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 2
    answer = _answer(loaded, options)
    print(json.dumps(answer, indent=2) if options.json else _words(answer))
    return 0 if answer["allowed"] else 1


def _answer(loaded: Loaded, options: argparse.Namespace) -> dict[str, Any]:
    """What ``--json`` prints. Headers count as they would on the way in: of a trusted proxy, what it says of the caller."""
    from resilmesh.identity.authz import Authorizer, InboundRequest
    from resilmesh.identity.gate import Connection, Gate, Refused, check_one_meaning
    from resilmesh.identity.paths import HostilePath, normalise
    from resilmesh.identity.xfcc import HEADER

    inbound = loaded.policy.inbound
    asked: dict[str, Any] = {"method": options.method, "path": options.path, "as": _text(options.caller)}
    headers: dict[str, list[str]] = {}
    for name, value in options.header:
        headers.setdefault(name, []).append(value)
    hosts = [*([] if options.host is None else [options.host]), *headers.get("host", ())]
    try:
        check_one_meaning(options.method, hosts)
        connection = Connection(options.source_ip, options.caller)
        caller = Gate(inbound).caller(connection, headers.get("x-forwarded-for", ()), headers.get(HEADER, ()))
        asked["as"] = _text(caller.identity)
        asked["path"] = normalise(options.path)
    except (Refused, HostilePath) as refused:
        status = refused.status if isinstance(refused, Refused) else 400
        reason = str(refused) if isinstance(refused, Refused) else f"the path cannot be used: {refused}"
        return {"allowed": False, "status": status, **asked, **_rule(loaded, None), "reason": reason, "audited": [], "shadow": None}
    decision = Authorizer((inbound and inbound.authorization) or ()).decide(InboundRequest(
        options.method, asked["path"], host=next(iter(hosts), ""), headers=headers,
        principal=None if caller.identity is None else caller.identity.principal, source_ip=caller.source,
        remote_ip=options.remote_ip or caller.remote, destination_ip=options.destination_ip, destination_port=options.port, sni=options.sni,
    ))
    shadow = decision.shadow
    return {
        "allowed": decision.allowed, "status": 200 if decision.allowed else 403, **asked, **_rule(loaded, decision),
        "reason": decision.reason, "audited": list(decision.audited),
        "shadow": None if shadow is None else {"allowed": shadow.allowed, **_rule(loaded, shadow), "reason": shadow.reason},
    }


def _rule(loaded: Loaded, decision: Decision | None) -> dict[str, Any]:
    """The policy and the rule that decided, and where they are written."""
    if decision is None or decision.policy is None:
        return {"policy": None, "rule": None, "place": None}
    policies = (loaded.policy.inbound and loaded.policy.inbound.authorization) or []
    index = next(number for number, each in enumerate(policies) if each.name == decision.policy)
    line, _ = loaded.places.line_column(("inbound", "authorization", index, "rules", decision.rule or 0))
    return {"policy": decision.policy, "rule": decision.rule, "place": f"{loaded.source}:{line}"}


def _text(identity: SpiffeId | None) -> str | None:
    return None if identity is None else str(identity)


def _words(answer: dict[str, Any]) -> str:
    where = f" ({answer['place']})" if answer["place"] else ""
    lines = [f"{'allowed' if answer['allowed'] else 'denied'}: {answer['reason']}{where}"]
    lines.append(f"  {answer['method']} {answer['path']} as {answer['as'] or 'a caller without an identity'}")
    lines += [f"  audited by {name!r}" for name in answer["audited"]]
    shadow = answer["shadow"]
    if shadow is not None:
        where = f" ({shadow['place']})" if shadow["place"] else ""
        lines.append(f"  policies of mode OBSERVE would have {'allowed' if shadow['allowed'] else 'denied'} it: {shadow['reason']}{where}")
    return "\n".join(lines)


def _spiffe_id(text: str) -> Any:
    from resilmesh.identity.spiffe import InvalidSpiffeId, SpiffeId

    try:
        found = SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not found.path:
        raise argparse.ArgumentTypeError(f"{text!r} is a trust domain and no workload")
    return found


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if not _TOKEN.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{name!r} is not the name of a header")
    return name.lower(), value


def _method(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a method")
    return text


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

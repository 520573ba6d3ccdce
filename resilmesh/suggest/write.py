"""The suggested policy as commented YAML, and as data for ``--json``.

Of a policy that is there everything is kept, and only blocks are added that nothing of it has; beside those that it has stands, as a
comment, what was measured.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from resilmesh.suggest.advice import Advice, Block, Said, of_route, of_service, shown
from resilmesh.suggest.profile import Profile, RouteProfile, ServiceProfile

#: Blocks that a route may have, in the order in which they are written; then those of a service.
_OF_ROUTES = ("timeout", "retries")
_OF_SERVICES = ("concurrency", "circuitBreaker", "retryBudget", "outlierDetection")
#: Needs no quotes, in any version of YAML, unless it is one of the words.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*", re.ASCII)
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
#: A duration, as it is written here.
_DURATION = re.compile(r"\d+(\.\d+)?(us|ms|s|m|h|d)", re.ASCII)
_WIDTH = 118


class Level:
    """What is said of a service or a route, beside what the policy has there."""

    def __init__(self, written: Mapping[str, Any], advice: Advice, inherited: Mapping[str, str]) -> None:
        self.written = written
        self.advice = advice
        #: Blocks that apply here and stand elsewhere, with the place.
        self.inherited = inherited

    def new(self) -> dict[str, Said | Block]:
        """What is suggested: blocks with a value that the policy has not."""
        return {key: block for key, block in self.advice.items() if self._is_new(key) and not _nothing(block)}

    def _is_new(self, key: str) -> bool:
        return key not in self.written and key not in self.inherited

    def lines(self) -> Iterator[str]:
        """Everything that the level has and gets, routes excepted."""
        for key, value in self.written.items():
            if key in self.advice:
                yield from _beside(key, self.advice[key], f"{key} is kept as it is")
            if key not in ("routes", "name"):
                yield from written(key, value)
        for key, block in self.advice.items():
            if key in self.written:
                continue
            if key in self.inherited:
                yield from _beside(key, block, f"{key} is that of {self.inherited[key]}")
            else:
                yield from suggested(key, block)


def services(profile: Profile, policy: Mapping[str, Any] | None) -> list[tuple[str, Level, list[tuple[str, Level]]]]:
    """What is said of each service, and of each of its routes."""
    if policy is None:
        found = [each for each in profile.services.values() if each.calls]
        return [_service(profile, each, _placeholder(each), {}) for each in found]
    defaults = dict.fromkeys(policy.get("defaults") or {}, "the defaults")
    nothing = ServiceProfile("", {}, {}, {})
    return [_service(profile, profile.services.get(each["name"], nothing), each, defaults) for each in policy.get("services") or ()]


def _placeholder(service: ServiceProfile) -> dict[str, Any]:
    """A service that is reachable by name alone, with the routes that were seen."""
    named = [{"name": name} for name, route in service.routes.items() if name != "*" and route.calls]
    return {"name": service.name, **({"protocol": "GRPC"} if service.grpc else {}), **({"routes": named} if named else {})}


def _service(
    profile: Profile, service: ServiceProfile, written: Mapping[str, Any], inherited: Mapping[str, str],
) -> tuple[str, Level, list[tuple[str, Level]]]:
    routes = written.get("routes") or []
    grpc = service.grpc or written.get("protocol") == "GRPC"
    own = {block: [route["name"] for route in routes if block in route] for block in _OF_SERVICES}
    endpoints = written.get("endpoints")
    rest = service.routes.get("*")
    advice: Advice = {}
    if rest is not None and rest.calls:
        advice |= of_route(rest, grpc=grpc)
    if service.calls:
        advice |= of_service(profile, service, own, None if endpoints is None else len(endpoints))
    whole = Level(written, advice, inherited)
    above = {**inherited, **dict.fromkeys(written, "the service")}
    return str(written["name"]), whole, [
        (route["name"], _route(service.routes.get(route["name"]), route, whole, above, grpc=grpc)) for route in routes
    ]


def _route(found: RouteProfile | None, written: Mapping[str, Any], whole: Level, above: Mapping[str, str], *, grpc: bool) -> Level:
    advice = of_route(found, grpc=grpc) if found is not None and found.calls else {}
    for key in whole.new():
        # A suggestion for what no route matches must not come down on a route that it was not measured on.
        if key in _OF_ROUTES and (key not in advice or _nothing(advice[key])):
            said = advice.get(key)
            why = said.why if isinstance(said, Said) else "no calls in the profile"
            advice[key] = Said("null", f"{why}. Without this the service's {key} would apply, which was measured on other requests")
    return Level(written, advice, above)


def text(profile: Profile, policy: Mapping[str, Any] | None, source: str, policy_source: str | None) -> str:
    """The policy."""
    lines = list(_head(profile, source, policy_source))
    if policy is None:
        lines += ["apiVersion: resilmesh/v1", "mesh:"]
        if profile.workload:
            lines.append(f"  workload: {scalar(profile.workload)}")
        if profile.mode == "OBSERVE":
            lines.append("  # As observed: it decides and acts on nothing. Remove this when wouldReject stays empty.")
        lines.append(f"  mode: {profile.mode}")
    else:
        for key, value in policy.items():
            if key != "services":
                lines += written(key, value)
    lines.append("services:")
    for name, whole, routes in services(profile, policy):
        lines += ["", *_service_lines(profile.services.get(name), name, whole, routes, placeholder=policy is None)]
    lines += _left_over(profile, policy, policy_source)
    if lines[-1] == "services:":
        lines[-1] = "services: []"
    return "\n".join(lines) + "\n"


def _head(profile: Profile, source: str, policy_source: str | None) -> Iterator[str]:
    calls = sum(service.calls for service in profile.services.values())
    yield from comment(
        f"Suggested by `resilmesh suggest` from {source!r}: {calls:,} calls in {shown(profile.seconds)}"
        + (f", of {profile.workers} workers" if profile.workers > 1 else "") + ". Every value has the measurement behind it."
        " A profile knows the traffic of its own time only: one that has seen the busiest hour makes a better policy."
    )
    if policy_source is not None:
        yield from comment(f"All of {policy_source!r} is kept, except its comments.")
    faults = sum(route.faults for service in profile.services.values() for route in service.routes.values())
    if faults:
        yield from comment(f"{faults:,} faults were injected meanwhile, which are in the figures: observe without them.")
    if profile.mode != "OBSERVE":
        yield from comment("It was taken in force (mode ENFORCE): what a policy refused, ended or repeated is in the figures.")
    yield ""


def _service_lines(
    found: ServiceProfile | None, name: str, whole: Level, routes: list[tuple[str, Level]], *, placeholder: bool,
) -> Iterator[str]:
    yield f"- name: {scalar(name)}"
    if found is None or not found.calls:
        yield from comment("No calls in the profile: nothing can be said.", 2)
    elif placeholder:
        yield from comment("Reachable by name only: write its hosts, and its routes' matches, or give the policy of then by --policy.", 2)
    yield from _indented(whole.lines(), 2)
    if routes:
        yield "  routes:"
    for route, level in routes:
        yield f"  - name: {scalar(route)}"
        yield from _indented(level.lines(), 4)


def _left_over(profile: Profile, policy: Mapping[str, Any] | None, policy_source: str | None) -> Iterator[str]:
    known = None if policy is None else {each["name"] for each in policy.get("services") or ()}
    for name, service in profile.services.items():
        if known is None and not service.calls:
            yield from ("", *comment(f"{name}: no calls in the profile."))
        elif known is not None and name not in known and service.calls:
            yield from ("", *comment(f"{name}: {service.calls:,} calls in the profile, and no such service in {policy_source!r}."))


def data(profile: Profile, policy: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Every value, and everything that cannot be said, one after the other: service, route, key, value, why, whether it is suggested."""
    found = []
    for name, whole, routes in services(profile, policy):
        for route, level in ((None, whole), *routes):
            new = level.new()
            for key, block in level.advice.items():
                for path, said in _flat(key, block):
                    value = None if said.value == "null" else said.value
                    found.append({
                        "service": name, "route": route, "key": path, "value": value, "why": said.why,
                        "suggested": key in new and said.value is not None,
                    })
    return found


def _flat(key: str, block: Said | Block) -> Iterator[tuple[str, Said]]:
    if isinstance(block, Said):
        yield key, block
    else:
        yield from ((f"{key}.{inner}", said) for inner, said in block.items())


# -------------------------------------------------------------------------------------------------- YAML


def suggested(key: str, block: Said | Block) -> Iterator[str]:
    """Lines of a suggestion: each value below its comment; what cannot be said as a comment alone."""
    if isinstance(block, Said):
        if block.value is None:
            yield from comment(f"no {key}: {block.why}")
        else:
            yield from comment(block.why)
            yield f"{key}: {_flow(block.value)}"
        return
    yield f"{key}:"
    for inner, said in block.items():
        yield from _indented(suggested(inner, said), 2)


def _beside(key: str, block: Said | Block, words: str) -> Iterator[str]:
    """What was measured, as a comment beside a block that is there."""
    if isinstance(block, Said):
        measured = block.why if block.value is None else f"would be {_flow(block.value)}: {block.why}"
        yield from comment(f"{words}. Measured: {measured}")
        return
    yield from comment(f"{words}. Measured:")
    for inner, said in block.items():
        measured = said.why if said.value is None else f"would be {_flow(said.value)}: {said.why}"
        yield from comment(f"  {inner} {measured}")


def written(key: str, value: Any) -> Iterator[str]:
    """Lines of a part of the policy that is kept."""
    if isinstance(value, dict) and value:
        yield f"{scalar(key)}:"
        for inner, each in value.items():
            yield from _indented(written(inner, each), 2)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        yield f"{scalar(key)}:"
        for each in value:
            yield f"- {_flow(each)}"
    else:
        yield f"{scalar(key)}: {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return "null" if value == "null" else scalar(value)


def scalar(value: Any) -> str:
    """A word, a number or a text, in quotes where it would otherwise be read as something else."""
    import yaml

    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if not isinstance(value, str):
        return str(value)
    if (_PLAIN.fullmatch(value) and value.lower() not in _WORDS) or _DURATION.fullmatch(value):
        return value
    return str(yaml.safe_dump(value, default_style='"', width=10**9, allow_unicode=True)).strip()


def comment(words: str, indent: int = 0) -> list[str]:
    """A comment of as many lines as it takes."""
    space = " " * indent
    inner = " " * (len(words) - len(words.lstrip()))
    wrapped = textwrap.wrap(words.strip(), _WIDTH - len(space) - len(inner), break_long_words=False, break_on_hyphens=False)
    return [f"{space}# {inner}{line}" for line in wrapped]


def _indented(lines: Iterator[str], by: int) -> Iterator[str]:
    return (" " * by + line if line else line for line in lines)


def _nothing(block: Said | Block) -> bool:
    return isinstance(block, Said) and block.value is None

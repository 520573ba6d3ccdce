"""The scenarios over gRPC: those of HTTP with gRPC's words, and what only gRPC has."""

from __future__ import annotations

from dataclasses import replace

from resilmesh.compare.scenarios import SCENARIOS, Closed, Open, Reason, Scenario, Tolerance
from resilmesh.compare.service import Latency, Script

#: What a service of a scenario does, as a gRPC service says it.
_CODES = {"200": "OK", "503": "UNAVAILABLE"}
_DOCS = "docs/how-to/compare.md#over-grpc"
_DEADLINE = Reason(
    "a time-out of the policy is UNAVAILABLE from Envoy, which answers what it would answer over HTTP; from the library it is "
    "DEADLINE_EXCEEDED, the code that callers of gRPC look for", _DOCS, ("failures: deadline",),
)
_PUSHBACK = Reason(
    "the library waits for as long as the service asks for (grpc-retry-pushback-ms); Envoy does not know the word and comes back "
    "after its own backoff", _DOCS, ("success", "failures", "attempts", "requests", "retries", "latency", "most"),
)


_RESET = Reason(
    "a stream that the service resets is UNAVAILABLE from Envoy; the library gives what grpcio says of it, which keeps the reason",
    _DOCS, ("failures: reset",),
)


def _over_grpc(scenario: Scenario) -> Scenario:
    return replace(
        scenario, protocol="GRPC", services=tuple(map(_script, scenario.services)), reasons=(*scenario.reasons, _DEADLINE, _RESET),
    )


def _script(script: Script) -> Script:
    return replace(
        script, outcomes={_CODES.get(word, word): share for word, share in script.outcomes.items()},
        outages=tuple(replace(outage, outcome=_CODES[outage.outcome]) for outage in script.outages),
    )


GRPC_SCENARIOS: tuple[Scenario, ...] = (
    *map(_over_grpc, SCENARIOS),
    Scenario(
        "pushback", "An overloaded service asks its callers to stay away for a while: who does?", protocol="GRPC",
        services=(Script("a", latency=Latency(0.030), capacity=2, queue=2, pushback=300),), traffic=Open(90, 3.5), workers=128,
        reasons=(_PUSHBACK, _DEADLINE), tolerance=Tolerance(share=0.06, attempts=0.1),
    ),
    Scenario(
        "steady-stream", "Nothing goes wrong with streams of messages either: what does each plane cost?", protocol="GRPC",
        services=(Script("a", messages=100),), traffic=Closed(400), workers=1, warm_up=20, streaming=True,
    ),
    Scenario(
        "flaky-stream", "Streams fail before their first message or after some: which are asked for again?", protocol="GRPC",
        services=tuple(Script(name, outcomes={"UNAVAILABLE": 0.15, "cut": 0.05}, latency=Latency(0.003, 0.3)) for name in "ab"),
        traffic=Open(200, 3.0), workers=32, streaming=True,
    ),
)

"""What the page says whatever was measured: how to read it, what follows from where a policy lives, what was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]
#: A head and the sentence that follows it.
Point = tuple[str, str]

PLANES = {
    "bare": "The client as it is. It calls the endpoints in turn; no policy applies.",
    "library-off": "The client with the library in it, switched off: what wrapping alone costs.",
    "library": "The policy is decided inside the application's own process, by resilmesh.",
    "sidecar": "The same policy is decided by Envoy, a proxy in a process of its own beside the application, as in a service mesh.",
    "sidecar-defaults": "The same, but what the policy leaves open is as Envoy has it by default, not as the library has it.",
    "bare-tls": "The client as it is, and the same certificates on both sides, as one would write it by hand: nobody asks whose they are.",
    "library-plain": "The library on both sides, by the same policy without its mutual TLS: to see what that costs.",
    "sidecar-pair-plain": "Two Envoys, one beside the client and one before the service, by the same policy without its mutual TLS.",
    "sidecar-pair": "Two Envoys, one beside the client and one before the service, with mutual TLS between them; the second one decides "
        "who may do what. All of it from the same policy, with certificates of the same authority.",
    "grpc-native": "grpcio decides by itself, by a service config with as much of the policy as that can say. No proxy, no library.",
}

INTRODUCTION = (
    "A policy says how a program treats the services that it calls: how long it waits, what it tries again, when it gives a failing "
    "service a rest. A service mesh has a proxy (mostly Envoy) enforce it, one beside each application: the sidecar. resilmesh enforces "
    "the same file inside the application. The same calls are made at the same times, once for each way, called a plane:"
)
SAME = "with 95 % confidence no further apart than the tolerance."
DIFFERS = "further apart than the tolerance, and that is not chance. What may be the reason stands beside it."
TOO_FEW = "neither can be said from so many calls; more rounds would tell."

COSTS = (
    "In a round all planes take turns in random order. Each cell has the median, below it the ratio to the bare client of the same round: "
    "the median, and in brackets the least and the greatest of the rounds. Compare ratios rather than milliseconds: those are this "
    "machine's."
)
COSTS_OF_TLS = "What a plane costs over the same plane without mutual TLS, in the same rounds: the median, below it the ratio."
WORST_CASE = (
    "The services of this scenario answer at once, so the ratios of latency are the worst case: the longer a service takes, the nearer "
    "to 1 they come."
)

CHOICE = (
    "What this report measured is sorted by who did better in it, in every round. What follows from where the policy lives is true of any "
    "library and any sidecar; it was not measured."
)
FOR_A_LIBRARY: tuple[Point, ...] = (
    ("One process less.", "Nothing has to be injected, started before the application, drained after it, or upgraded beside it."),
    ("It knows the call.", "It sees exceptions and deadlines of the application, and guards functions that no proxy sees."),
    ("It runs anywhere.", "In a test, on a laptop, in a batch job, without a cluster."),
)
FOR_A_MESH: tuple[Point, ...] = (
    ("State for the whole pod.",
     "The library has circuits, limits and budgets for each process; one sidecar has them for all processes of a pod."),
    ("Work outside of the application.", "A proxy's CPU is spent beside the application, not in its own process and under its GIL."),
    ("Upgrades without a deploy.", "A new version of the library is a new release of each application; a sidecar is replaced beside it."),
    ("Every language.", "The library is for Python; a sidecar does not care."),
)

PARITY = "Exact behaves the same in both; approximate differs as stated; library-only has no counterpart in Envoy."
SEED = (
    "The seed decides the times of the calls and each call's luck at a service of the test bed; threads and the machine decide the rest, "
    "so that figures vary a little."
)


#: By the protocol of the calls.
_OF_PROTOCOL: dict[str, tuple[Point, ...]] = {
    "HTTP/1.1": ((
        "The library brings its own pool for HTTP/1.1.",
        "It is cheaper than the client library's, which the planes bare, library-off and sidecar use. So what the library costs over "
        "bare is its policy less what its pool saves; a client over such a pool would gain as much, with a sidecar or without.",
    ),),
    "gRPC": (
        ("Every plane's calls go through grpcio's C core.",
         "It keeps the connections, and sends again by itself what a service has certainly not seen. The services of the scenarios are "
         "written in Python on h2, so that they can reset streams; the same ones serve every plane."),
        ("grpcio's own time-outs are early.",
         "A timeout of a service config runs out one to two seconds too soon (grpc/grpc#40633): the plane grpc-native has it as written. "
         "The other planes do not use it; a timeout that is given with a call is exact."),
    ),
}


def not_measured(report: Json) -> list[Point]:
    """What a reader who looks for unfairness should know."""
    cpus, client = report["machine"]["cpus"], report["client"]
    points = [
        (f"{cpus} shared CPU{'s' if cpus != 1 else ''}.",
         "Client and proxy run on them together, and so do the services of the scenarios. A proxy competes with its client for a core, "
         "as it does in a small pod; on a larger machine its CPU is the same and its share of the latency less."),
        ("One host, over 127.0.0.1.",
         "No network lies between a client and the services of the scenarios: what a hop through a proxy costs is a larger part of a call "
         "than between machines."),
        ("The client is Python.",
         f"{client['library']} {client['version']} with {client['style']} makes every call, on every plane. It takes far longer for a call "
         "than Envoy does; beside a faster client both ways would cost more in proportion."),
        *_OF_PROTOCOL.get(client["protocol"], ()),
        ("Envoy, not Istio.",
         "There is no control plane, no redirection by iptables, no telemetry filter, and mutual TLS in its own scenarios alone. A sidecar "
         "of Istio does more, and costs more."),
        ("One worker thread for Envoy.", "Round robin and limits are exact with one; with more each worker balances for itself."),
        (f"{client['protocol']}.", "Plain text between client, proxy and services, but for the scenarios of mutual TLS; small bodies."),
        ("No gateway, no ambient mode.", "A mesh with a proxy for each node instead of sidecars divides the costs otherwise."),
        ("Minutes, not days.", "What leaks or drifts over days does not show here."),
    ]
    if not any(scenario.get("processes", 1) > 1 for scenario in report["scenarios"]):
        points.append((
            "One process of the client.",
            "State for each process, the library's disadvantage with several workers, does not show in these scenarios.",
        ))
    return points

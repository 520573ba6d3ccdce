"""The scenarios of mutual TLS, over HTTP/1.1: both sides prove who they are, and the service says who may do what."""

from __future__ import annotations

from resilmesh.compare.scenarios import Calls, Closed, Identities, Matrix, Open, Scenario
from resilmesh.compare.service import Latency, Script

_FAST = Latency(0.003, 0.3)
#: Twenty callers: five workloads in each of four namespaces.
CALLERS = tuple(
    f"/ns/{namespace}/sa/{name}" for namespace in ("shop", "pay", "ops", "batch") for name in ("web", "api", "cron", "admin", "audit")
)
#: One call for each of the policy's twenty rules, in their order.
ASKED: Calls = (
    ("GET", "/v1/items"), ("GET", "/v1/items/17"), ("POST", "/v1/items"), ("PUT", "/v1/items/17"), ("GET", "/v1/stock"),
    ("POST", "/v1/stock/17/reserve"), ("GET", "/v1/prices/17"), ("PUT", "/v1/prices/17"), ("POST", "/v1/orders"),
    ("GET", "/v1/orders/4/lines/2"),
    ("POST", "/v1/refunds"), ("GET", "/v1/reports/daily.csv"), ("GET", "/v1/reports/daily.json"), ("DELETE", "/v1/items/17"),
    ("GET", "/admin/settings"), ("POST", "/admin/settings"), ("GET", "/v1/audit/log"), ("POST", "/batch/import"), ("GET", "/healthz"),
    ("GET", "/v1//items/./17"),
)

IDENTITY_SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "mtls-steady", "Both sides prove who they are and nothing goes wrong: what does mutual TLS cost on each plane?",
        services=(Script("a"),), traffic=Closed(1500), workers=1, warm_up=50, identities=Identities(),
        plain_policy_file="compare/policies/mtls-steady.plain.yaml",
    ),
    Scenario(
        "mtls-rotation", "Certificates of both sides are renewed under traffic, and so is the root: how many calls fail?",
        services=tuple(Script(name, latency=_FAST) for name in "ab"), traffic=Open(150, 7.0), workers=24,
        identities=Identities(
            renewals=tuple(round(0.3 + 0.2 * number, 1) for number in range(33)), root_steps=(1.35, 3.15, 4.95), requests_per_connection=25,
        ),
    ),
    Scenario(
        "mtls-authorization", "Twenty callers make twenty calls each, by twenty rules: is everybody let in, and kept out, alike?",
        services=(Script("a"),), traffic=Matrix(callers=len(CALLERS), calls=len(ASKED), rate=250), workers=8, warm_up=len(CALLERS),
        identities=Identities(callers=CALLERS), called=ASKED,
    ),
    Scenario(
        "mtls-expired", "The certificate of one endpoint of three has run out: is it called, and does anybody notice?",
        services=tuple(Script(name, latency=_FAST) for name in "abc"), traffic=Open(200, 3.0), workers=32,
        identities=Identities(expired=("c",)),
    ),
)

"""A policy as grpcio's own service config: what it says, what it cannot say, and that grpcio takes it."""

from __future__ import annotations

import json

import grpc
import pytest

from resilmesh.compare.native import Native, native
from resilmesh.compare.scenarios import Scenario
from resilmesh.compare.scenarios_grpc import GRPC_SCENARIOS
from resilmesh.policy.load import load_text


def of(blocks: str) -> Native:
    return native(load_text(f"""
apiVersion: resilmesh/v1
services:
- name: inventory
  hosts: [inventory.test]
  protocol: GRPC
  endpoints: [{{address: "127.0.0.1:9001", labels: {{version: v1}}}}]
{blocks}""").policy)


def test_retries_time_out_and_budget_are_said_in_grpcs_words() -> None:
    found = of("""
  timeout: 1500ms
  retries: {maxRetries: 2, retryOn: [unavailable, resource-exhausted], backoff: {base: 10ms, max: 50ms}}
  retryBudget: {percent: 20, minRetriesPerSecond: 10}
""")
    assert found.service_config == {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{
            "name": [{}], "timeout": "1.5s", "retryPolicy": {
                "maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.05s", "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }],
        "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
    }
    assert found.cannot is None
    early, *_ = found.differences
    assert early.startswith("timeout runs out one to two seconds early (grpc/grpc#40633)")


def test_what_it_cannot_say_is_told_block_by_block() -> None:
    found = of("""
  loadBalancer: LEAST_REQUEST
  retries: {maxRetries: 9, perTryTimeout: 100ms, retryOn: [connect-failure, 5xx, unavailable]}
  retryBudget: null
  circuitBreaker: {failureRateThreshold: 50}
  outlierDetection: {consecutive5xxErrors: 3}
  concurrency: {maxRequests: 4}
""")
    told = "\n".join(found.differences)
    for words in (
        "circuitBreaker, concurrency: no counterpart", "outlierDetection cannot be said", "connect-failure, 5xx in retryOn cannot be said",
        "perTryTimeout cannot be said", "maxRetries: 4 at most", "loadBalancer LEAST_REQUEST is round_robin",
    ):
        assert words in told
    assert found.service_config["methodConfig"][0]["retryPolicy"]["maxAttempts"] == 5
    assert "retryThrottling" not in found.service_config
    assert "timeout" not in found.service_config["methodConfig"][0]


@pytest.mark.parametrize(("blocks", "why"), [
    ("  timeout: 1s\n  concurrency: {maxRequests: 4}", "the time-out alone, not concurrency"),
    ("  retries: {retryOn: [unavailable]}\n  fault: {abort: {grpcStatus: 14, percent: 1}}", "cannot say fault"),
    ("  retries: {retryOn: [unavailable]}\n  routes: [{name: a, match: [{headers: {x-a: b}}]}]", "cannot say routes"),
])
def test_a_policy_of_which_too_little_is_left_is_not_run(blocks: str, why: str) -> None:
    cannot = of(blocks).cannot
    assert cannot is not None
    assert why in cannot


@pytest.mark.parametrize("scenario", GRPC_SCENARIOS, ids=lambda scenario: scenario.name)
def test_grpcio_takes_the_service_config_of_every_scenario(scenario: Scenario) -> None:
    config = native(load_text(scenario.policy()).policy).service_config
    # A config that it does not take ends every call as INTERNAL, "Failed to create channel"; nobody listens at this address.
    with grpc.insecure_channel("127.0.0.1:1", options=[("grpc.service_config", json.dumps(config))]) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/shop.v1.Inventory/GetItem")(b"", timeout=5)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert "service config" not in caught.value.details()

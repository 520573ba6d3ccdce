"""Mutual TLS on both planes: real services, real Envoys on both sides, one authority."""

from __future__ import annotations

import importlib.util
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from resilmesh import cli
from resilmesh.compare.judge import DIFFERS, SAME, judge
from resilmesh.compare.measure import SUCCEEDED, Call, Measured
from resilmesh.compare.pair import IDENTITY_PLANES, PLAIN_OF, SIDECAR_PAIR
from resilmesh.compare.planes import ALL_PLANES, LIBRARY, missing_for_identities
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import Result, Settings, compare, expected_seconds, steps
from resilmesh.compare.scenarios import HOST, Matrix, Open, Scenario
from resilmesh.compare.scenarios_identity import ASKED, CALLERS, IDENTITY_SCENARIOS
from resilmesh.compare.trust import TRUST_DOMAIN
from resilmesh.identity.authz import Authorizer, InboundRequest
from resilmesh.identity.paths import normalise
from resilmesh.policy.check import check
from resilmesh.policy.load import load_text

BY_NAME = {scenario.name: scenario for scenario in IDENTITY_SCENARIOS}


def run(scenario: Scenario) -> Result:
    settings = Settings([scenario], rounds=1)
    (result,) = compare(settings, Progress(io.StringIO(), steps(settings), expected_seconds(settings)))
    return result


@pytest.mark.parametrize("scenario", IDENTITY_SCENARIOS, ids=lambda scenario: scenario.name)
def test_their_policies_have_no_mistake_and_no_warning(scenario: Scenario) -> None:
    for file in filter(None, (scenario.policy_file, scenario.plain_policy_file)):
        assert [str(each) for each in check(load_text(scenario.policy(file=file), file))] == []


def test_the_plain_policy_is_the_same_but_for_what_callers_and_services_prove() -> None:
    scenario = BY_NAME["mtls-steady"]
    secured, plain = (load_text(scenario.policy(file=file)).policy for file in (None, scenario.plain_policy_file))
    (of_secured,), (of_plain,) = secured.services, plain.services
    assert of_secured.tls is not None
    assert of_secured.model_copy(update={"tls": None}).model_dump() == of_plain.model_dump()


def test_everybody_is_let_in_and_kept_out_alike_and_as_the_rules_say() -> None:
    scenario = BY_NAME["mtls-authorization"]
    assert scenario.identities is not None
    assert isinstance(scenario.traffic, Matrix)
    callers = CALLERS[1::4]  # one of each kind and of each namespace: an Envoy for each
    result = run(replace(
        scenario, identities=replace(scenario.identities, callers=callers), traffic=replace(scenario.traffic, callers=len(callers)),
    ))
    assert list(result.planes) == [LIBRARY, SIDECAR_PAIR]
    policy = load_text(scenario.policy()).policy
    assert policy.inbound is not None
    authorizer = Authorizer(policy.inbound.authorization or [])
    expected = [
        authorizer.decide(InboundRequest(method, normalise(path), host=HOST, principal=f"{TRUST_DOMAIN}{caller}")).allowed
        for method, path in ASKED for caller in callers
    ]
    for plane, measured in result.planes.items():
        assert [call.outcome == SUCCEEDED for call in measured.calls] == expected, plane
        assert set(measured.failures) == {"denied"}
        assert measured.requests == sum(expected)  # nobody else came to the service
    assert 20 < sum(expected) < 80
    verdicts = {each.figure: each for each in result.judgements}["verdicts as the library's"]
    assert verdicts.verdict == SAME


def test_one_verdict_that_differs_is_enough() -> None:
    scenario = BY_NAME["mtls-authorization"]
    mine = Call(SUCCEEDED, 0.01, 0.0, "v1", Counter(a=1), 0)
    calls = Measured([mine] * 400, None, None, None, (1,), None, None)
    other = replace(calls, calls=[*calls.calls[1:], replace(mine, outcome="failed: denied")])
    figures = {each.figure: each.verdict for each in judge(calls, other, scenario, 1)}
    assert figures["verdicts as the library's"] == DIFFERS


def test_no_call_fails_while_everything_is_renewed() -> None:
    scenario = BY_NAME["mtls-rotation"]
    assert scenario.identities is not None
    identities = replace(scenario.identities, renewals=tuple(0.2 * number for number in range(18)), root_steps=(0.25, 1.45, 2.65))
    result = run(replace(scenario, traffic=Open(100, 4.2), identities=identities))
    for plane, measured in result.planes.items():
        assert measured.success_rate == 1, (plane, measured.failures)
        assert measured.renewals is not None
        assert measured.renewals[0] >= 3, plane  # those of the root at least
    assert [mark["what"] for mark in result.series[LIBRARY]["marks"]] == ["next root announced", "next root signs", "old root retired"]


def test_who_shows_a_certificate_that_has_run_out_gets_no_request() -> None:
    result = run(replace(BY_NAME["mtls-expired"], traffic=Open(100, 1.2)))
    for plane, measured in result.planes.items():
        assert measured.success_rate == 1, (plane, measured.failures)
        assert set(measured.endpoints) == {"a", "b"}
        assert measured.retries is not None
        assert measured.retries[0] >= 3, plane
        assert measured.ejections is not None
        assert measured.ejections[0] >= 1, plane


def test_the_command_says_what_mutual_tls_costs_on_each_plane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page, site = (tmp_path / name for name in ("report.json", "report.md", "report.html"))
    short = ["compare", "--only", "mtls-steady", "--rounds", "1", "--json", str(file), "--markdown", str(page), "--html", str(site)]
    assert cli.main(short) == 0
    assert "What mutual TLS costs on each plane" in capsys.readouterr().out
    told = json.loads(file.read_text())
    (scenario,) = told["scenarios"]
    assert list(scenario["planes"]) == list(IDENTITY_PLANES)
    assert told["cost"] is None
    cost = told["cost_of_mtls"]
    assert list(cost["of_tls"]) == list(PLAIN_OF)
    pair, library = cost["planes"][SIDECAR_PAIR], cost["planes"][LIBRARY]
    assert pair["cpu_proxy"]["value"]["median"] > 0
    assert "cpu_proxy" not in library
    added = cost["of_tls"][LIBRARY]["latency_p50"]["added"]["median"]
    plain = cost["planes"][PLAIN_OF[LIBRARY]]["latency_p50"]["value"]["median"]
    assert added == pytest.approx(library["latency_p50"]["value"]["median"] - plain)
    assert "### What mutual TLS costs on each plane" in page.read_text()
    assert "What mutual TLS adds on each plane" in site.read_text()


def test_other_scenarios_have_none_of_these_planes() -> None:
    from resilmesh.compare.scenarios import SCENARIOS

    for scenario in SCENARIOS:
        assert not set(Settings([scenario], planes=ALL_PLANES).planes_of(scenario)) & (set(IDENTITY_PLANES) - {"bare", LIBRARY})
    assert Settings([BY_NAME["mtls-expired"]], planes=["bare", "sidecar"]).planes_of(BY_NAME["mtls-expired"]) == []


def test_without_cryptography_they_are_left_out_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *package: None if name == "cryptography" else find(name, *package))
    assert missing_for_identities() == "there is no cryptography: pip install 'resilmesh[serve]'"
    assert cli.main(["compare", "--only", "mtls-expired"]) == 2
    assert "pip install 'resilmesh[serve]'" in capsys.readouterr().err

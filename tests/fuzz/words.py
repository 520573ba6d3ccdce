"""Targets that read a few words: durations, regular expressions, the headers of an answer."""

from __future__ import annotations

import math

import httpx

from resilmesh.engine.plan import RetryPlan
from resilmesh.engine.verdict import Answer, mask
from resilmesh.http.classify import of_response, retry_after
from resilmesh.policy.regex import compile_regex
from resilmesh.testing import ManualClock
from resilmesh.units import MAX_SECONDS, format_duration, parse_duration
from tests.fuzz.draws import Draws


def duration(data: bytes) -> None:
    text = data.decode(errors="replace")
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        _said(error)
        return
    assert 0 <= seconds <= MAX_SECONDS
    shown = format_duration(seconds)
    assert math.isclose(parse_duration(shown), seconds, rel_tol=1e-8, abs_tol=1e-9), f"{text!r} is {seconds!r}, written {shown!r}"


def regex(data: bytes) -> None:
    draws = Draws(data)
    expression, value = draws.text(80), draws.rest().decode(errors="replace")
    try:
        compiled = compile_regex(expression)
    except ValueError as error:
        _said(error)
        return
    whole = compiled.fullmatch(value)
    assert whole is None or whole.span() == (0, len(value))


def answer(data: bytes) -> None:
    """The status and headers of an answer, as they come off the wire."""
    draws = Draws(data)
    status = 100 + draws.below(900)
    names = (b"retry-after", b"x-ratelimit-reset", b"x-envoy-ratelimited", b"grpc-status", b"x-a")
    headers = [(draws.pick(names), draws.raw(draws.below(60))) for _ in range(draws.below(5))]
    clock = ManualClock()
    response = httpx.Response(status, headers=headers)
    retries = RetryPlan(
        max_retries=1, words=mask("5xx", "envoy-ratelimited"), statuses=frozenset({status}), per_try_timeout=None, base=0.025,
        longest=0.25, retry_after_max=60.0,
    )
    for plan in (None, retries):
        found = of_response(response, clock, plan)
        assert isinstance(found, Answer)
        assert found.status == status
    wait = retry_after(response.headers, clock)
    assert wait is None or 0 <= wait < math.inf


def _said(error: ValueError) -> None:
    assert 0 < len(str(error)) < 1000

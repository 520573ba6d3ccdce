"""A scripted service: every outcome is judged as the real one would be, in every client."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

import resilmesh
from resilmesh.testing import ManualClock, Reply, ScriptedTransport, after
from tests.drive.guarding import RETRY, idle, listen, mesh_of
from tests.testing.clients import KINDS, Client

pytestmark = pytest.mark.anyio

Make = Callable[..., Client]


@pytest.fixture(params=KINDS)
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:
        def client(mesh: resilmesh.Mesh | None, service: ScriptedTransport, **settings: Any) -> Client:
            made = Client(request.param, mesh, service, **settings)
            stack.push_async_callback(made.close)
            return made

        yield client


def mesh(**blocks: str) -> resilmesh.Mesh:
    return mesh_of(clock=blocks.pop("clock", ManualClock()), hosts="[svc.test]", **blocks)  # type: ignore[arg-type]  # a clock


async def test_outcomes_come_in_turn_and_are_recorded(make: Make) -> None:
    service = ScriptedTransport([503, Reply(201, json={"left": 3}, headers={"x-a": "b"}), 200])
    client = make(mesh(retries=RETRY), service)
    response = await client.request("PUT", "http://svc.test/items/7?deep=1", json={"n": 1})
    assert (response.status_code, response.json(), response.headers["x-a"]) == (201, {"left": 3}, "b")
    first, second = service.requests
    assert (first.method, first.url, first.host, first.path) == ("PUT", "http://svc.test/items/7?deep=1", "svc.test", "/items/7")
    assert first.content == second.content == b'{"n":1}'
    with pytest.raises(AssertionError, match=r"goes on, and nobody asked: \[200\]"):
        service.check()
    assert (await client.get()).status_code == 200
    service.check()


#: What each failure is: its verdict, and the retry words of which each alone has it repeated. From http/classify.py's table.
FAILURES = {
    "connect-refused": ("UNSENT", {"5xx", "gateway-error", "reset", "connect-failure", "reset-before-request"}),
    "connect-timeout": ("UNSENT", {"5xx", "gateway-error", "reset", "connect-failure", "reset-before-request"}),
    "reset-before-request": ("UNSENT", {"5xx", "gateway-error", "reset", "reset-before-request"}),
    "refused-stream": ("UNSENT", {"5xx", "gateway-error", "reset", "refused-stream"}),
    "reset": ("FAILURE", {"5xx", "gateway-error", "reset"}),
    "closed": ("FAILURE", {"5xx", "gateway-error", "reset"}),
    "write-error": ("FAILURE", {"5xx", "gateway-error", "reset"}),
    "timeout": ("FAILURE", {"5xx", "gateway-error", "reset"}),
    "write-timeout": ("FAILURE", {"5xx", "gateway-error", "reset"}),
    "pool-timeout": ("IGNORED", set()),
}
WORDS = ("5xx", "gateway-error", "reset", "connect-failure", "reset-before-request", "refused-stream")


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_is_judged_as_the_real_one(make: Make, name: str) -> None:
    verdict, words = FAILURES[name]
    for word in WORDS:
        tried = mesh(retries=f"{{maxRetries: 1, retryOn: [{word}], backoff: {{base: 1ms}}}}")
        events = listen(tried)
        client = make(tried, ScriptedTransport([name, 200]))
        if word in words:
            assert (await client.get()).status_code == 200
        else:
            with pytest.raises(client.library.TransportError):
                await client.get()
        assert next(each.detail["verdict"] for each in events if each.name == "attempt_ended") == verdict
        assert idle(tried)


@pytest.mark.parametrize("name", [name for name, (verdict, _) in FAILURES.items() if verdict == "UNSENT"])
async def test_what_was_not_sent_is_repeated_even_for_a_post(make: Make, name: str) -> None:
    client = make(mesh(retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}"), ScriptedTransport([name, 200]))
    assert (await client.request("POST", content=b"x")).status_code == 200


async def test_a_hang_ends_at_the_limit_of_the_policy(make: Make) -> None:
    clock = ManualClock(autojump=True)
    client = make(mesh(clock=clock, timeout="1h"), ScriptedTransport("hang"), timeout=None)  # type: ignore[arg-type]  # a clock
    with pytest.raises(resilmesh.DeadlineExceeded, match="timeout of 1h"):
        await client.get()
    assert clock.monotonic() == pytest.approx(4600, abs=0.01)


async def test_a_hang_ends_at_the_time_out_of_the_client(make: Make) -> None:
    clock = ManualClock(autojump=True)
    client = make(mesh(clock=clock, timeout="1h"), ScriptedTransport("hang"), timeout=30)  # type: ignore[arg-type]  # a clock
    with pytest.raises(client.library.ReadTimeout) as caught:
        await client.get()
    assert not isinstance(caught.value, resilmesh.ResilmeshError)
    assert clock.monotonic() == pytest.approx(1030, abs=0.01)


async def test_a_delay_is_the_clocks(make: Make) -> None:
    clock = ManualClock(autojump=True)
    tried = mesh(clock=clock, retries=RETRY.replace("retryOn", "perTryTimeout: 10s, retryOn"))  # type: ignore[arg-type]  # a clock
    client = make(tried, ScriptedTransport([after(11, 200), after(2, Reply(200, delay=3))]), timeout=None)
    assert (await client.get()).status_code == 200
    assert clock.monotonic() == pytest.approx(1015, abs=0.01)


async def test_a_connection_that_takes_too_long_ends_at_connect_timeout(make: Make) -> None:
    clock = ManualClock(autojump=True)
    for outcome in ("connect-timeout", after(60, "connect-refused")):
        began = clock.monotonic()
        client = make(mesh(clock=clock, connectTimeout="7s", timeout="1h"), ScriptedTransport(outcome), timeout=None)  # type: ignore[arg-type]  # a clock
        with pytest.raises(client.library.ConnectTimeout):
            await client.get()
        assert clock.monotonic() - began == pytest.approx(7, abs=0.01)


async def test_a_body_comes_in_parts_and_may_break(make: Make) -> None:
    clock = ManualClock(autojump=True)
    tried = mesh(clock=clock, idleTimeout="10s")  # type: ignore[arg-type]  # a clock
    service = ScriptedTransport([Reply(parts=[b"a", 9.0, b"b"]), Reply(parts=[b"a", "reset"]), Reply(parts=[b"a", 11.0, b"b"])])
    client = make(tried, service, timeout=None)
    assert (await client.get()).content == b"ab"
    with pytest.raises(client.library.ReadError):
        await client.get()
    with pytest.raises(resilmesh.DeadlineExceeded, match="idleTimeout of 10s"):
        await client.get()
    assert clock.monotonic() == pytest.approx(1019, abs=0.01)
    assert idle(tried)


async def test_a_call_lasts_until_its_body_is_read(make: Make) -> None:
    tried = mesh(concurrency="{maxRequests: 1}")
    client = make(tried, ScriptedTransport(Reply(200, content=b"body")))
    async with client.stream():
        assert tried.snapshot()["inFlight"] == 1
        with pytest.raises(resilmesh.ConcurrencyExceeded):
            await client.get()
    assert idle(tried)


async def test_rules_by_method_host_and_path(make: Make) -> None:
    service = ScriptedTransport({
        "POST svc.test/v1/*": [201, 409], "svc.test/v1/*": 200, "/health": itertools.cycle([200, 503]), "*.other": "connect-refused",
    })
    client = make(None, service)

    async def status(method: str, url: str) -> int:
        found: int = (await client.request(method, url)).status_code
        return found

    assert [await status("POST", "http://svc.test/v1/a") for _ in range(2)] == [201, 409]
    assert await status("GET", "http://svc.test:8080/v1/a") == 200
    assert [await status("GET", "http://any/health") for _ in range(3)] == [200, 503, 200]
    with pytest.raises(client.library.ConnectError):
        await client.get("http://an.other/")
    with pytest.raises(AssertionError) as caught:
        await client.request("POST", "http://svc.test/v1/a")
    used_up = "unexpected request POST http://svc.test/v1/a (number 8): the script of 'POST svc.test/v1/*' is used up; it was [201, 409]"
    assert str(caught.value) == used_up
    with pytest.raises(AssertionError) as caught:
        await client.get("http://nobody/")
    expected = "expected was one of 'POST svc.test/v1/*', 'svc.test/v1/*', '/health', '*.other'"
    assert str(caught.value) == f"unexpected request GET http://nobody/ (number 9): {expected}"
    with pytest.raises(AssertionError) as caught:
        service.check()
    assert str(caught.value).splitlines()[0] == used_up


async def test_rules_by_endpoint(make: Make) -> None:
    tried = mesh(endpoints='[{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]', retries=RETRY, loadBalancer="ROUND_ROBIN")
    service = ScriptedTransport({"10.0.0.1": 503, "10.0.0.2": 200})
    client = make(tried, service)
    assert {(await client.get()).status_code for _ in range(4)} == {200}
    assert {each.request.url.host for each in service.requests} == {"10.0.0.1", "10.0.0.2"}
    assert {each.host for each in service.requests} == {"svc.test"}


async def test_a_function_answers(make: Make) -> None:
    def answer(request: Any) -> Any:
        return after(1, Reply(int(request.url.path[1:])))

    client = make(mesh(), ScriptedTransport(answer))
    assert (await client.get("http://svc.test/418")).status_code == 418


async def test_an_exception_and_a_response_of_the_client(make: Make) -> None:
    client = make(mesh(), ScriptedTransport([ConnectionRefusedError("no"), KeyError]))
    with pytest.raises(ConnectionRefusedError):
        await client.get()
    with pytest.raises(KeyError):
        await client.get()
    client = make(mesh(), ScriptedTransport([client.library.Response(202, json=[1])]))
    assert (await client.get()).json() == [1]


async def test_an_unexpected_request_reaches_the_caller_past_every_retry(make: Make) -> None:
    tried = mesh(retries=RETRY, circuitBreaker="{consecutiveFailures: 1}")
    client = make(tried, ScriptedTransport([]))
    with pytest.raises(AssertionError, match=r"unexpected request GET http://svc.test/ \(number 1\)"):
        await client.get()
    assert tried.snapshot()["services"]["svc"]["circuitBreakers"]["*"]["state"] == "CLOSED"
    assert idle(tried)


@pytest.mark.parametrize("wrong", ["conect-refused", [200, "conect-refused"], 42, [None], after(1, "nope")])
async def test_what_is_no_outcome_is_said_when_the_script_is_made(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"is no (outcome|HTTP status)"):
        ScriptedTransport(wrong)


async def test_a_coroutine_function_answers_in_an_async_client_only() -> None:
    async def answer(request: Any) -> int:
        return 204

    for kind in KINDS:
        client = Client(kind, mesh(), ScriptedTransport(answer))
        if client.awaits:
            assert (await client.get()).status_code == 204
        else:
            with pytest.raises(TypeError, match="a blocking client cannot await"):
                await client.get()
        await client.close()

"""Headers, rewrites, mirrors, fallbacks and classification: what the service gets, and what the caller."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from http_driver import Driver, mesh_of, nothing_in_flight, policy
from http_service import Service, answer, close, hang, unused_port

import resilmesh
from tests.timing import lasts

URL = "http://svc.test/v1/things/7?a=1&b=%20"


def get(driver: Driver, mesh: resilmesh.Mesh, url: str = URL, **request: Any) -> Any:
    with driver.client(transport=driver.transport(mesh)) as client:
        return client.get(url, **request)


def names(events: list[Any]) -> list[str]:
    return [event.name for event in events]


# ------------------------------------------------------------------------------------------------- headers


def test_request_headers_are_removed_set_and_added_in_this_order(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, headers="{request: {remove: [x-debug], set: {x-team: shop, x-debug: kept}, add: {x-many: '50%'}}}")
    get(driver, mesh, headers={"X-Debug": "1", "X-Team": "mine", "x-many": "old", "x-else": "same"})
    seen = service.seen[0].headers
    assert (seen["x-debug"], seen["x-team"], seen["x-else"]) == ("kept", "shop", "same")
    assert seen["x-many"] == "50%", "the service's reader keeps the last of several"


def test_response_headers_are_changed_and_those_of_local_answers_are_not(driver: Driver, service: Service) -> None:
    service.script = [answer(200, headers={"server": "secret", "x-kept": "1"})]
    mesh = mesh_of(
        service, mesh="{localReplies: RESPOND}", headers="{response: {remove: [server], set: {x-mesh: 'yes'}}}",
        rateLimit="{requests: 1, per: 1h}",
    )
    with driver.client(transport=driver.transport(mesh)) as client:
        first, second = client.get(URL), client.get(URL)
    assert "server" not in first.headers
    assert (first.headers["x-mesh"], first.headers["x-kept"]) == ("yes", "1")
    assert (second.status_code, "x-mesh" in second.headers) == (429, False)


def test_a_retry_sends_the_same_headers_once(driver: Driver, service: Service) -> None:
    service.script = [answer(503)]
    mesh = mesh_of(
        service, headers="{request: {add: {x-a: b}}}", rewrite="{path: /}", retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}",
    )
    assert get(driver, mesh).status_code == 200
    assert service.seen[0].headers == service.seen[1].headers
    assert service.seen[0].target == service.seen[1].target == "/v1/things/7?a=1&b=%20"


def test_observe_changes_nothing(driver: Driver, service: Service, other: Service) -> None:
    text = two_services(service, other, "headers: {request: {set: {x-a: b}}}\n  rewrite: {host: b.test}\n  mirror: {service: other}")
    mesh = resilmesh.Mesh.from_text(text.replace("resilmesh/v1", "resilmesh/v1\nmesh: {mode: OBSERVE}"))
    with driver.client(transport=driver.transport(mesh)) as client, pytest.raises(driver.library.ConnectError):
        client.get(f"http://svc.test:{unused_port()}/")  # as without a policy: svc.test is looked up
    assert other.seen == []


# ------------------------------------------------------------------------------------------------ rewrites

ROUTES = """
  - {name: exact, match: {path: /exact}, rewrite: {path: /other}}
  - {name: several, match: [{path: {prefix: /v1}}, {path: {regex: "/v[0-9]+/.*"}}], rewrite: {path: /api}}
  - {name: regex, match: {path: {prefix: /re/}}, rewrite: {pathRegex: {match: "/([a-z]+)/([0-9]+)", rewrite: '/\\2/\\1\\\\'}}}
  - {name: host, match: {path: /host}, rewrite: {host: "b.test:99"}}
  - {name: bare, match: {path: {regex: "/bare/.*"}}, rewrite: {pathRegex: {match: "^/bare/", rewrite: ""}}}
  - {name: rest, rewrite: {path: "/all of it/"}}
"""


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("/exact?q=1", "/other?q=1"),
        ("/v1/things?x=/v1", "/api/things?x=/v1"),
        ("/v12/things", "/api2/things"),
        ("/v2/things", "/api"),
        ("/re/5/abc/77/x", "/5/re\\/77/abc\\/x"),
        ("/host", "/host"),
        ("/bare/item?q", "/item?q"),
        ("/%C3%A9?p=%3F", "/all%20of%20it/%C3%A9?p=%3F"),
    ],
)
def test_a_rewrite_replaces_what_was_matched(driver: Driver, service: Service, asked: str, sent: str) -> None:
    mesh = resilmesh.Mesh.from_text(policy(service).replace("  endpoints", f"  routes:{ROUTES}  endpoints"))
    response = get(driver, mesh, "http://svc.test" + asked)
    assert service.seen[0].target == sent
    assert service.seen[0].headers["host"] == ("b.test:99" if asked == "/host" else "svc.test")
    assert str(response.request.url) == "http://svc.test" + asked, "the caller sees the request that he made"


# ----------------------------------------------------------------------------------------- classification


def test_statuses_and_headers_count_as_the_policy_says(driver: Driver, service: Service) -> None:
    service.script = [answer(404), answer(501), answer(200, headers={"x-soft-error": "quota"}), answer(200, headers={"x-soft-error": "no"})]
    mesh = mesh_of(service, classify='{failureStatuses: [404], successStatuses: [501], failureHeaders: {x-soft-error: {prefix: quota}}}')
    events: list[Any] = []
    mesh.subscribe(events.append)
    with driver.client(transport=driver.transport(mesh)) as client:
        assert [client.get(URL).status_code for _ in range(4)] == [404, 501, 200, 200]
    assert [event.detail["verdict"] for event in events if event.name == "call_ended"] == ["FAILURE", "SUCCESS", "FAILURE", "SUCCESS"]


def test_a_class_is_no_retry_word(driver: Driver, service: Service) -> None:
    service.script = [answer(404), answer(501), answer(404), answer(501)]
    mesh = mesh_of(
        service, classify="{failureStatuses: [404], successStatuses: [501]}",
        retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}",
    )
    with driver.client(transport=driver.transport(mesh)) as client:
        assert [client.get(URL).status_code for _ in range(2)] == [404, 501]
    mesh.apply_text(policy(
        service, classify="{failureStatuses: [404], successStatuses: [501]}",
        retries="{maxRetries: 1, retryOn: [404, 501], backoff: {base: 1ms}}",
    ))
    with driver.client(transport=driver.transport(mesh)) as client:
        assert client.get(URL).status_code == 501, "a number is retried, whatever it counts as"
    assert len(service.seen) == 4


# ----------------------------------------------------------------------------------------------- fallbacks

STATIC = '{status: 203, headers: {content-type: application/json}, body: "[]"}'


def test_a_static_answer_stands_in_for_each_kind_of_failure(driver: Driver, service: Service) -> None:
    service.script = [answer(503), hang(1), close]
    mesh = mesh_of(service, timeout="150ms", fallback=STATIC, rateLimit="{requests: 3, per: 1h}")
    events: list[Any] = []
    mesh.subscribe(events.append)
    with driver.client(transport=driver.transport(mesh)) as client:
        responses = [client.get(URL) for _ in range(4)]
    assert [(each.status_code, each.json(), each.headers["content-type"]) for each in responses] == [(203, [], "application/json")] * 4
    reasons = ["FAILURE", "DEADLINE", "FAILURE", "REJECTED"]
    assert [event.detail["reason"] for event in events if event.name == "fell_back"] == reasons
    assert [each.extensions["resilmesh"]["fallback"] for each in responses] == reasons
    stats = mesh.snapshot()["services"]["svc"]["routes"]["*"]
    assert stats["fallbacks"] == {"FAILURE": 2, "DEADLINE": 1, "REJECTED": 1}
    assert (stats["succeeded"], stats["failed"], stats["rejected"]) == (0, 3, {"RateLimited": 1}), "a fallback makes no success"
    assert nothing_in_flight(mesh)


def test_a_fallback_for_one_reason_leaves_the_others(driver: Driver, service: Service) -> None:
    service.script = [answer(503, b"busy")]
    mesh = mesh_of(service, fallback="{on: [REJECTED], status: 200}", rateLimit="{requests: 2, per: 1h}")
    with driver.client(transport=driver.transport(mesh)) as client:
        assert [(each.status_code, each.text) for each in (client.get(URL), client.get(URL), client.get(URL))] == [
            (503, "busy"), (200, "ok"), (200, ""),
        ]


def test_a_fallback_in_code_sees_what_the_caller_would(driver: Driver, service: Service) -> None:
    service.script = [answer(503, b"busy"), answer(502, b"pass"), close]
    mesh = mesh_of(service, fallback=STATIC)
    seen: list[Any] = []

    def stand_in(request: Any, outcome: Any) -> Any:
        seen.append(outcome)
        if getattr(outcome, "status_code", 0) == 502:
            return None
        return driver.library.Response(200, text="from the cache")

    with driver.client(transport=driver.transport(mesh, fallback=stand_in)) as client:
        texts = [client.get(URL).text for _ in range(3)]
        own = client.get(URL, extensions={"resilmesh": {"fallback": lambda request, outcome: None}})
    assert texts == ["from the cache", "pass", "from the cache"]
    assert [getattr(each, "status_code", type(each).__name__) for each in seen] == [503, 502, "RemoteProtocolError"]
    assert own.text == "ok"
    assert nothing_in_flight(mesh)


def test_what_a_fallback_raises_reaches_the_caller(driver: Driver, service: Service) -> None:
    service.otherwise = answer(503)
    mesh = mesh_of(service)

    def stand_in(request: Any, outcome: Any) -> Any:
        if request.url.path == "/raise":
            raise LookupError("no cache either")
        return "no response"

    with driver.client(transport=driver.transport(mesh, fallback=stand_in)) as client:
        with pytest.raises(LookupError, match="no cache"):
            client.get("http://svc.test/raise")
        with pytest.raises(TypeError, match=r"a fallback gives an httpx2?\.Response, or None"):
            client.get("http://svc.test/")
        with pytest.raises(TypeError, match="cannot be called"):
            driver.transport(mesh, fallback="cache")
    assert nothing_in_flight(mesh)


def test_an_asynchronous_fallback_is_awaited(driver: Driver, service: Service) -> None:
    if driver.runtime == "sync":
        return
    service.otherwise = answer(500)
    mesh = mesh_of(service)

    async def stand_in(request: Any, outcome: Any) -> Any:
        await outcome.aread()
        return driver.library.Response(200, text=f"was {outcome.status_code} {outcome.text}")

    with driver.client(transport=driver.transport(mesh, fallback=stand_in)) as client:
        assert client.get(URL).text == "was 500 ok"
    assert nothing_in_flight(mesh)


def test_an_injected_failure_exercises_the_fallback(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, fault="{abort: {httpStatus: 503}}", fallback=STATIC)
    assert get(driver, mesh).status_code == 203
    mesh.apply_text(policy(service, fault="{abort: {httpStatus: 404}}", fallback=STATIC))
    assert get(driver, mesh).status_code == 404, "no failure"
    assert service.seen == []


# ------------------------------------------------------------------------------------------------- mirrors


def two_services(service: Service, other: Service, blocks: str) -> str:
    return (
        f"apiVersion: resilmesh/v1\nservices:\n- name: svc\n  hosts: [svc.test]\n"
        f"  endpoints: [{{address: '{service.address}'}}]\n  {blocks}\n"
        f"- name: other\n  endpoints: [{{address: '{other.address}'}}]\n"
    )


def waits_for(condition: Any, seconds: float = 3.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def test_a_copy_goes_to_the_other_service_once_per_call(driver: Driver, service: Service, other: Service) -> None:
    service.script = [answer(503), answer(503)]
    other.otherwise = answer(500)
    mesh = resilmesh.Mesh.from_text(two_services(
        service, other,
        "mirror: {service: other}\n  rewrite: {path: /}\n  headers: {request: {set: {x-a: b}}}\n"
        "  retries: {maxRetries: 2, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}",
    ))
    events: list[Any] = []
    mesh.subscribe(events.append)
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.request("POST", "http://svc.test:81/x?y=1", content=b"payload")
        assert (response.status_code, response.extensions["resilmesh"]["attempts"]) == (200, 3)
        assert waits_for(lambda: any(event.name == "call_ended" and event.service == "other" for event in events))
    assert [(each.method, each.target, each.headers["host"], each.body) for each in other.seen] == [
        ("POST", "/x?y=1", "svc.test-shadow:81", b"payload"),
    ]
    assert other.seen[0].headers["x-a"] == "b"
    assert len(service.seen) == 3
    snapshot = mesh.snapshot()
    assert snapshot["services"]["svc"]["routes"]["*"]["mirrored"] == 1
    assert snapshot["services"]["other"]["routes"]["(mirror)"]["failed"] == 1
    assert [(event.service, event.detail["to"]) for event in events if event.name == "mirrored"] == [("svc", "other")]
    assert nothing_in_flight(mesh)


def test_nobody_waits_for_a_copy(driver: Driver, service: Service, other: Service) -> None:
    other.otherwise = hang(0.6)
    mesh = resilmesh.Mesh.from_text(two_services(service, other, "mirror: {service: other}"))
    with driver.client(transport=driver.transport(mesh)) as client:
        client.get(URL)
        with lasts(0, 0.4):
            assert all(client.get(URL).status_code == 200 for _ in range(5))
        assert waits_for(lambda: len(other.seen) >= 4)
    assert waits_for(lambda: nothing_in_flight(mesh)), "a client that is closed ends its copies"
    assert waits_for(lambda: not any(thread.name == "resilmesh-mirror" for thread in threading.enumerate()))


def test_a_stream_is_not_copied_and_a_rejected_call_neither(driver: Driver, service: Service, other: Service) -> None:
    mesh = resilmesh.Mesh.from_text(two_services(service, other, "mirror: {service: other}\n  rateLimit: {requests: 1, per: 1h}"))

    def parts() -> Any:
        yield b"a"

    async def async_parts() -> Any:
        yield b"a"

    with driver.client(transport=driver.transport(mesh)) as client:
        client.request("POST", URL, content=parts() if driver.runtime == "sync" else async_parts())
        with pytest.raises(resilmesh.RateLimited):
            client.get(URL)
    stats = mesh.snapshot()["services"]["svc"]["routes"]["*"]
    assert (stats["mirrored"], stats["mirrorsDropped"]) == (0, {"streamed": 1})
    assert other.seen == []


def test_a_share_is_copied(driver: Driver, service: Service, other: Service) -> None:
    mesh = resilmesh.Mesh.from_text(two_services(service, other, "mirror: {service: other, percent: 30}"), seed=7)
    with driver.client(transport=driver.transport(mesh)) as client:
        for _ in range(60):
            client.get(URL)
        copies = mesh.snapshot()["services"]["svc"]["routes"]["*"]["mirrored"]
        assert waits_for(lambda: len(other.seen) == copies)
    assert 8 <= copies <= 30


def test_a_service_that_takes_no_more_gets_no_more_copies(driver: Driver, service: Service, other: Service) -> None:
    other.otherwise = hang(1)
    text = two_services(service, other, "mirror: {service: other}") + "  concurrency: {maxRequests: 2}\n"
    mesh = resilmesh.Mesh.from_text(text)
    with driver.client(transport=driver.transport(mesh)) as client:
        for _ in range(6):
            client.get(URL)
        assert waits_for(lambda: mesh.snapshot()["services"]["other"]["routes"]["(mirror)"]["rejected"] == {"ConcurrencyExceeded": 4})
        assert waits_for(lambda: len(other.seen) == 2)


# ---------------------------------------------------------------------------------- limits by header value


def test_each_value_of_a_header_has_a_bucket(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, rateLimit="{requests: 2, per: 1h, descriptor: {header: x-user}}")
    with driver.client(transport=driver.transport(mesh)) as client:
        for user in ("alice", "bob", None):
            headers = {} if user is None else {"X-User": user}
            assert [client.get(URL, headers=headers).status_code for _ in range(2)] == [200, 200]
            with pytest.raises(resilmesh.RateLimited) as rejected:
                client.get(URL, headers=headers)
            assert rejected.value.retry_after == pytest.approx(1800, abs=5)
    shown = mesh.snapshot()["services"]["svc"]["rateLimits"]["*"]
    assert shown == {"0 by x-user": {"requests": 2, "per": 3600.0, "burst": 2, "header": "x-user", "values": 2, "evicted": 0}}
    assert "alice" not in repr(mesh.snapshot())

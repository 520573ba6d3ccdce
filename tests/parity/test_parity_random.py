"""Random policies, random requests, random outcomes: whatever `check` accepts does the same in both planes.

A seed makes one policy, its requests and what the services do with each attempt, and nothing that happens is left to
chance: one request at a time but for a few batches, shares of 0 or 100 %, limits that no clock refills, waits that are
far apart. What the model calls approximate or library-only is not drawn, nor are mirrors, whose copies take their own time.
``RESILMESH_PARITY_SEEDS=1000:1200`` runs those seeds in place of the few that every run has.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from scripted import CLOSE, OK, RESET, Say, Script, Seen, Service, refusing, status
from sidebyside import Both, Caller, Observation, side_by_side

Json = dict[str, Any]

_FEW = "0:10"
_WORDS = [
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx", "envoy-ratelimited",
]
_METHODS = ["GET", "GET", "GET", "POST", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "HEAD", "PURGE"]
_PATHS = [
    "/", "/a", "/a/b", "/a/b/", "/a//b", "/A", "/a%2Fb", "/a%2fb", "/a%20b", "/a;v=1", "/a/../b", "/%61", "/caf%C3%A9", "/a.b/~c,d",
    "/x" * 300, "/shop.Stock/Take", "/shop.Stock/Give", "/other.Stock/Take",
]
_QUERIES = [
    "", "", "?q=1", "?q=1&r=2", "?r=2&q=1", "?q", "?q=", "?q=a%20b", "?q=a+b", "?Q=1", "?%71=1", "?q=1&q=2", "?&&q=1", "?q=1?r=2", "?q=a=b",
]
_VALUES = ["1", "2", "one", "One", "a,b", "a b", "", "v12", "x" * 40, "caf\xe9"]
_PATH_EXPRESSIONS = ["/a.*", "/[a-c]/b", "/(?i)a", "/a|/a/b", "/a(/b)?/?", ".*b", "/a\\.b.*", "/%61", "", "/\\w+$$", "^/a"]
_NAMES = ["x-a", "x-b", "x_c"]
#: Statuses and outcomes of one attempt, by how often.
_OUTCOMES: list[Say] = [
    *[OK] * 6, *(status(code) for code in (201, 302, 400, 404, 409, 429, 500, 501, 502, 503, 503, 503, 504, 505, 599)), RESET, RESET, CLOSE,
    status(429, headers=(("Retry-After", "0"),)), status(503, headers=(("Retry-After", "100"),)),
    status(503, headers=(("retry-after", "soon"),)), Say(503, body=b"x" * 5000, how="half"), Say(600),
    status(200, headers=(("x-envoy-ratelimited", "1"),)),
    status(503, headers=(("x-envoy-ratelimited", "true"),)), Say(204, body=b""), Say(200, body=b"x" * 5000, how="half"),
    Say(304, body=b""), Say(delay=0.6), Say(200, headers=(("x-twice", "1"), ("X-Twice", "2"))), Say(500, body=b""),
]


@dataclass(frozen=True)
class Request:
    method: str
    host: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes | None
    #: What the service does with the attempts; the last one again for all that follow.
    outcomes: list[Say]
    #: So many at once.
    at_once: int = 1


class Draw:
    """Everything that a seed makes."""

    def __init__(self, seed: int, services: dict[str, Service], nobody: str) -> None:
        self.rng = random.Random(seed)
        self._addresses = {name: service.address for name, service in services.items()}
        self._nobody = nobody
        self.hosts: list[str] = ["nobody.example"]
        #: Services of which each policy service's calls go to any one.
        self.groups: list[str] = []
        #: Hosts of services whose endpoints take connections.
        self._answering: list[str] = []
        #: Hosts that are called without policy: what breaks there is an exception of the client's, and Envoy's 503.
        self._bare: list[str] = []
        self.policy = self._policy()
        self.requests = [self.request() for _ in range(self.rng.randint(10, 30))]

    def maybe(self, share: float) -> bool:
        return self.rng.random() < share

    # ------------------------------------------------------------------------------------------- policy

    def _policy(self) -> Json:
        names = ["a", "b", "c"]
        self.rng.shuffle(names)
        services = []
        while names:
            count = min(self.rng.randint(1, 3), len(names))
            group, names = names[:count], names[count:]
            make = self._anywhere if count == 1 and self.maybe(0.3) else self._service
            services.append(make(len(services), group))
        made: Json = {"apiVersion": "resilmesh/v1", "mesh": {"outbound": "REGISTRY_ONLY"}, "services": services}
        if self.maybe(0.3):
            made["defaults"] = self._blocks(outliers=False, at="defaults")
        return made

    def _service(self, number: int, group: list[str]) -> Json:
        self.groups.append("".join(group))
        self.hosts += (hosts := self._hosts(number))
        hosts = [host.replace("any.", "*.") for host in hosts]
        refused = self.maybe(0.1)
        if not refused:
            self._answering += self.hosts[-len(hosts):]
        endpoints: list[Json] = [{"address": f"${name}", "labels": {"at": name}} for name in group]
        if refused:
            endpoints = [{"address": self._nobody}]
        made: Json = {"name": f"s{number}", "hosts": hosts, "endpoints": endpoints}
        made |= self._blocks(outliers=len(endpoints) == 1, at="service")
        if self.maybe(0.1):
            made["rewrite"] = self._rewrite(host=True)
        if not refused and self.maybe(0.4):
            made["subsets"] = [{"name": name, "labels": {"at": name}} for name in group]
            made["split"] = self._split(group)
        if self.maybe(0.3):
            made["loadBalancer"] = self.rng.choice(["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"])
        if self.maybe(0.2):
            made["connectTimeout"] = "2s"
        subsets = group if "subsets" in made else []
        routes = [self._route(f"r{index}", subsets, has_endpoints=True) for index in range(self.rng.randint(0, 4))]
        if outlier := made.get("outlierDetection"):
            # A retry that finds nobody left, and ejections of a route with a limit of its own: differences that the notes state.
            made["retries"] = None
            routes = [{name: block for name, block in route.items() if name not in ("retries", "concurrency")} for route in routes]
            outlier["interval"] = "60s"
        return made | ({"routes": routes} if routes else {})

    def _anywhere(self, number: int, group: list[str]) -> Json:
        """A service without endpoints, whose requests go where their host says; not always with its policy."""
        self.groups += group
        self.hosts.append(host := self._addresses[group[0]])
        made: Json = {"name": f"s{number}", "hosts": [host], **self._blocks(outliers=False, at="service")}
        made["mode"] = self.rng.choice(["ENFORCE", "ENFORCE", "OBSERVE", "OFF"])
        if made["mode"] != "ENFORCE":
            self._bare.append(host)
        if self.maybe(0.5):
            made["routes"] = [self._route("r0", [], has_endpoints=False)]
        return made

    def _hosts(self, number: int) -> list[str]:
        own = f"s{number}.test"
        return self.rng.choice([
            [own], [own, f"{own}:8080"], [f"{own}:8080"], [f"any.s{number}.example"], [own, f"any.{own}:81"], [own.upper()],
        ])

    def _split(self, group: list[str]) -> list[Json]:
        weights = self.rng.choice([[100, 0, 0], [0, 0, 7], [1, 2, 3]])[:len(group)]
        return [{"subset": name, "weight": weight if any(weights) else 1} for name, weight in zip(group, weights, strict=True)]

    def _route(self, name: str, subsets: list[str], *, has_endpoints: bool) -> Json:
        made: Json = {"name": name, **self._blocks(outliers=False, at="route")}
        if self.maybe(0.25):
            made["rewrite"] = self._rewrite(host=has_endpoints)
        if self.maybe(0.9):
            made["match"] = self.matches()
        if subsets and self.maybe(0.4):
            made["split"] = self._split(subsets)
        return made

    def matches(self) -> Any:
        found = [self._match() for _ in range(self.rng.choice([1, 1, 2]))]
        return found if len(found) > 1 else found[0]

    def _match(self) -> Json:
        made: Json = {}
        if self.maybe(0.07):
            return {"grpc": self.rng.choice([{"service": "shop.Stock"}, {"method": "Take"}, {"service": "shop.Stock", "method": "Take"}])}
        if self.maybe(0.3):
            made["method"] = self.rng.sample(sorted(set(_METHODS)), self.rng.randint(1, 3))
        if self.maybe(0.6):
            made["path"] = self._path_match()
        if self.maybe(0.3):
            made["headers"] = {self.rng.choice(_NAMES): self._string_match(_VALUES[:-1]) for _ in range(self.rng.randint(1, 2))}
        if self.maybe(0.3):
            made["query"] = {self.rng.choice(["q", "r", "%71"]): self._string_match(["1", "2", "", "a%20b", "a+b", "a=b"])}
        return made or {"path": {"prefix": "/a"}}

    def _path_match(self) -> Any:
        path = self.rng.choice(_PATHS)
        return self.rng.choice([
            path, {"exact": path}, {"prefix": path}, {"prefix": path[:-1] or "/"}, {"prefix": "/"},
            {"regex": self.rng.choice(_PATH_EXPRESSIONS)},
        ])

    def _string_match(self, values: list[str]) -> Any:
        value = self.rng.choice(values)
        return self.rng.choice([
            value, {"exact": value}, {"prefix": value[:2] or "x"}, {"suffix": value[-1:] or "x"}, {"present": self.maybe(0.6)},
            {"regex": self.rng.choice(["v[0-9]+", "one|1", "(?i)one", ".*", "", "[^,]*", "a.b", ".+"])},
        ])

    def _blocks(self, *, outliers: bool, at: str) -> Json:
        made: Json = {}
        if self.maybe(0.5):
            made["retries"] = self._retries()
        if self.maybe(0.3):
            made["timeout"] = "400ms"
        if self.maybe(0.1):
            made["idleTimeout"] = "5s"
        if self.maybe(0.12):
            made["fault"] = self._fault()
        if at != "defaults" and self.maybe(0.15):
            made["rateLimit"] = self._rate_limit(at)
        if self.maybe(0.15):
            made["concurrency"] = {"maxRequests": self.rng.randint(1, 3)}
        if outliers and self.maybe(0.3):
            made["outlierDetection"] = self._outliers()
        if self.maybe(0.2):
            made["headers"] = self._headers()
        if self.maybe(0.2) and at != "route":
            made["classify"] = self._classify()
        for name in ("retries", "timeout", "fault", "rateLimit", "concurrency", "headers", "classify"):
            if at != "defaults" and name not in made and self.maybe(0.06):
                made[name] = None
        return made

    def _retries(self) -> Json:
        words: list[Any] = self.rng.sample(_WORDS, self.rng.randint(0, 3))
        words += self.rng.sample([404, 409, 429, 500, 503, 504, 200], self.rng.randint(0, 2))
        made: Json = {
            "maxRetries": self.rng.choice([0, 1, 1, 2, 3]), "retryOn": words or ["5xx"],
            "backoff": {"base": "1ms", "max": self.rng.choice(["1ms", "5ms"])},
        }
        if self.maybe(0.4):
            made["perTryTimeout"] = "150ms"
        if self.maybe(0.4):
            made["idempotent"] = self.maybe(0.5)
        if self.maybe(0.3):
            made["retryAfter"] = self.rng.choice([None, {"max": "200ms"}])
        return made

    def _fault(self) -> Json:
        made: Json = {}
        if self.maybe(0.8):
            made["abort"] = {
                self.rng.choice(["httpStatus", "httpStatus", "grpcStatus"]): 0, "percent": self.rng.choice([0, 0, 100]),
            }
            for kind, values in (("httpStatus", [200, 404, 503]), ("grpcStatus", [1, 14])):
                if kind in made["abort"]:
                    made["abort"][kind] = self.rng.choice(values)
        if not made or self.maybe(0.3):
            made["delay"] = {"fixedDelay": "20ms", "percent": self.rng.choice([0, 100])}
        return made

    def _rate_limit(self, at: str) -> Any:
        made: Json = {"requests": self.rng.randint(1, 5), "per": "1h"}
        if self.maybe(0.4):
            made["burst"] = self.rng.randint(1, 8)
        if at == "route" and self.maybe(0.3):
            made["scope"] = "ROUTE"
        if self.maybe(0.4):
            made["descriptor"] = {"header": self.rng.choice(_NAMES), "maxValues": self.rng.choice([1, 2, 3, 100])}
        # A later limit that refuses would have spent the earlier's token: a difference that the notes state.
        return [made, {"requests": 1000}] if self.maybe(0.3) else made

    def _headers(self) -> Json:
        """Changes to what a service sees. Envoy changes the answers that it makes itself too, so responses are left alone."""
        names = [*_NAMES, "x-call-of", "cookie", "accept-language"]
        values = ["1", "100%", "%REQ(x-a)%", "%%", "", "a, b", "caf\xe9"]
        made: Json = {}
        for operation in ("set", "add"):
            if self.maybe(0.6):
                made[operation] = {name: self.rng.choice(values) for name in self.rng.sample(names, self.rng.randint(1, 2))}
        if self.maybe(0.4) or not made:
            made["remove"] = self.rng.sample(names, self.rng.randint(1, 3))
        return {"request": made}

    def _rewrite(self, *, host: bool) -> Json:
        made: Json = {}
        if host and self.maybe(0.4):
            made["host"] = self.rng.choice(["other.test", "Other.test:81", "[::1]:80", "10.0.0.1"])
        if not made or self.maybe(0.6):
            # A path that loses its first slash or wins a dot segment is a difference that the model states.
            made |= self.rng.choice([
                {"path": self.rng.choice(["/", "/z", "/z/", "/a%20b", "/<z>", "//", "/{z}%"])},
                {"pathRegex": {
                    "match": self.rng.choice(["/a", "/(a)?", "[^/]*$$", "b*", "(.)(b)", "/+", r"\b", "(?i)A", "%2F"]),
                    "rewrite": self.rng.choice(["/z", r"/\0_", "/é", r"/\\x", "/ -"]),
                }},
            ])
        return made

    def _classify(self) -> Json:
        made: Json = {}
        if self.maybe(0.5):
            made["failureStatuses"] = self.rng.sample([404, 409, 429, 200, 302, 503], self.rng.randint(1, 3))
        if self.maybe(0.5):
            made["successStatuses"] = self.rng.sample([500, 502, 504, 505, 599], self.rng.randint(1, 3))
        if not made or self.maybe(0.3):
            made["failureHeaders"] = {"x-twice": self._string_match(["1", "2", "3"])}
        return made

    def _outliers(self) -> Json:
        made: Json = {"baseEjectionTime": "60s"}
        if self.maybe(0.7):
            made["consecutive5xxErrors"] = self.rng.choice([None, 1, 2, 3])
        if self.maybe(0.4):
            made["consecutiveGatewayErrors"] = self.rng.randint(1, 3)
        if self.maybe(0.3):
            made["splitExternalLocalOriginErrors"] = True
            if self.maybe(0.7):
                made["consecutiveLocalOriginFailures"] = self.rng.randint(1, 3)
        if self.maybe(0.2):
            made["panicThreshold"] = self.rng.choice([50, 100])
        if self.maybe(0.2):
            made["maxEjectionPercent"] = self.rng.choice([0, 50, 100])
        return made

    # ------------------------------------------------------------------------------------------ requests

    def request(self) -> Request:
        method = self.rng.choice(_METHODS)
        host = self.rng.choice(self.hosts)
        if self.maybe(0.2):
            host = self.rng.choice([host.upper(), f"{host.partition(':')[0]}:8080", f"{host.partition(':')[0]}:80", "deep." + host])
        headers = [(self._spell(self.rng.choice(_NAMES)), self.rng.choice(_VALUES)) for _ in range(self.rng.choice([0, 0, 1, 2, 3]))]
        body = self.rng.choice([b"", b"body", b"x" * 2000]) if method in ("POST", "PATCH", "PUT") else None
        if method in ("POST", "PATCH") and self.maybe(0.3):
            headers.append(("Idempotency-Key", "k"))
        target = self.rng.choice(_PATHS) + self.rng.choice(_QUERIES)
        if self._answering and self.maybe(0.05):
            return Request("GET", self.rng.choice(self._answering), "/", [], None, [Say(delay=0.25)], at_once=5)
        outcomes = [self.rng.choice(_OUTCOMES) for _ in range(self.rng.choice([1, 1, 2, 3, 5]))]
        if host in self._bare:
            outcomes = [each for each in outcomes if each.how == "answer"] or [OK]
        return Request(method, host, target, headers, body, outcomes)

    def _spell(self, name: str) -> str:
        return self.rng.choice([name, name.upper(), name.title()])


# ------------------------------------------------------------------------------------------------ running


def _run(draw: Draw, services: dict[str, Service]) -> Both:
    def attempt(seen: Seen, _before: int) -> Say:
        call = seen.headers["x-call"]
        request = draw.requests[int(call)]
        before = sum(each.headers["x-call"] == call for service in services.values() for each in list(service.seen)) - 1
        return request.outcomes[min(before, len(request.outcomes) - 1)]

    def traffic(caller: Caller) -> None:
        for number, request in enumerate(draw.requests):
            headers = [("x-call", str(number)), *request.headers]
            if request.at_once > 1:
                caller.together(request.at_once, request.target, host=request.host, headers=headers)
            else:
                caller.send(
                    request.method, request.target, host=request.host, content=request.body,
                    headers=[(name, value.encode("latin-1")) for name, value in headers],
                )

    scripts: dict[str, Script] = dict.fromkeys(services, attempt)
    return side_by_side(services, json.dumps(draw.policy), traffic, **scripts)


#: Headers that are each plane's own business.
_OWN = {"connection", "x-forwarded-proto", "x-request-id", "x-forwarded-for", "accept-encoding", "accept", "user-agent"}


def _arrived(seen: Seen) -> tuple[Any, ...]:
    """A request as far as the planes must agree on it. httpx writes a host in lower case and without a port of 80; behind
    a sidecar it does not know the host. Envoy says of a request without a body that its length is 0."""
    headers = {name: value for name, value in seen.headers.items() if name not in _OWN and not name.startswith("x-envoy")}
    headers["host"] = headers["host"].lower().removesuffix(":80")
    if headers.get("content-length") == "0":
        del headers["content-length"]
    return int(headers.pop("x-call")), seen.method, seen.target, seen.body, sorted(headers.items())


def _seen(draw: Draw, plane: Observation) -> dict[str, list[Any]]:
    """What the services of each group saw of each call."""
    return {group: sorted(_arrived(each) for name in group for each in plane.seen[name]) for group in draw.groups}


def _replies(draw: Draw, plane: Observation) -> list[Any]:
    """What the client saw of each request; those of a batch in one order."""
    replies = iter([(each.status, each.body, sorted(each.headers.items()), each.cut) for each in plane.replies])
    return [sorted(next(replies) for _ in range(request.at_once)) for request in draw.requests]


_DOMAINS = ["a.test", "b.a.test", "c.b.a.test", "a.example", "test", "127.0.0.1", "[::1]"]


def _hosts_of(rng: random.Random, services: int) -> list[list[str]]:
    """Hosts of each service, every host only once."""
    patterns = [*_DOMAINS, *(f"*.{domain}" for domain in _DOMAINS[:5])]
    hosts = [*patterns, *(f"{host}:{port}" for host in patterns for port in (80, 81, 8080)), "*"]
    rng.shuffle(hosts)
    return [[hosts.pop() for _ in range(rng.randint(1, 4))] for _ in range(services)]


def _directory(draw: Draw) -> Json:
    """Many services and routes, each of which answers with a status of its own."""
    def answers(code: int) -> Json:
        return {"fault": {"abort": {"httpStatus": code}}}

    services = [
        {
            "name": f"s{number}", "hosts": hosts, **answers(310 + number),
            "routes": [{"name": f"r{index}", "match": draw.matches(), **answers(400 + 10 * number + index)} for index in range(8)],
        }
        for number, hosts in enumerate(_hosts_of(draw.rng, 6))
    ]
    return {"apiVersion": "resilmesh/v1", "mesh": {"outbound": "REGISTRY_ONLY"}, "services": services}


def _seeds() -> Sequence[int]:
    first, _, end = os.environ.get("RESILMESH_PARITY_SEEDS", _FEW).partition(":")
    return range(int(first), int(end or int(first) + 1))


@pytest.mark.parametrize("seed", _seeds())
def test_random_policies_and_requests(services: dict[str, Service], seed: int) -> None:
    with refusing() as nobody:
        draw = Draw(seed, services, nobody)
        both = _run(draw, services)
    differ = [
        f"call {number}: {draw.requests[number]}\n  library {mine}\n  envoy   {its}"
        for number, (mine, its) in enumerate(zip(_replies(draw, both.library), _replies(draw, both.envoy), strict=True))
        if mine != its
    ]
    mine, its = _seen(draw, both.library), _seen(draw, both.envoy)
    for group in draw.groups:
        differ += [f"only the library sent to {group}: {each}" for each in mine[group] if each not in its[group]]
        differ += [f"only Envoy sent to {group}: {each}" for each in its[group] if each not in mine[group]]
        if len(mine[group]) != len(its[group]):
            differ.append(f"{group} saw {len(mine[group])} requests of the library, {len(its[group])} of Envoy")
    assert not differ, "\n".join([f"seed {seed}", json.dumps(draw.policy, indent=1), *differ])


@pytest.mark.parametrize("seed", _seeds())
def test_random_hosts_and_matches(services: dict[str, Service], seed: int) -> None:
    draw = Draw(seed, services, "127.0.0.1:1")
    directory = _directory(draw)
    rng = draw.rng
    requests = []
    for _ in range(120):
        request = draw.request()
        name = rng.choice([*_DOMAINS, "x." + rng.choice(_DOMAINS[:5])])
        requests.append((request, rng.choice([name, name, name.upper(), f"{name}:80", f"{name}:81", f"{name}:8080"])))

    def traffic(caller: Caller) -> None:
        for request, host in requests:
            caller.send(
                request.method, request.target, host=host, headers=[(name, value.encode("latin-1")) for name, value in request.headers],
            )

    both = side_by_side(services, json.dumps(directory), traffic)
    differ = [
        f"{request.method} {host}{request.target} {request.headers}: library {mine}, envoy {its}"
        for (request, host), mine, its in zip(requests, both.library.statuses, both.envoy.statuses, strict=True)
        if mine != its
    ]
    assert not differ, "\n".join([f"seed {seed}", json.dumps(directory, indent=1), *differ])

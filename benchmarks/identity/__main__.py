"""What identity costs: a request and a handshake under mutual TLS, beside httpx with the same certificates and beside two Envoys with
the same policy; a decision of a thousand rules.

    python -m benchmarks.identity [--rounds N] [--seed N] [--json FILE]

The service is a process of its own. Client CPU is counted (``time.process_time``), because the service's share of a machine with few
cores would hide the rest; beside the Envoys, which are processes of their own, time is. Ratios are of the same rounds: median [quartiles].
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

import resilmesh
from benchmarks.measure import Samples, Spread, interleave, machine, ratio
from resilmesh.envoy.ingress import ingress
from resilmesh.envoy.process import Envoy
from resilmesh.envoy.tls import IdentityFiles
from resilmesh.envoy.translate import translate
from resilmesh.identity import SpiffeId
from resilmesh.identity.authz import Authorizer, InboundRequest
from resilmesh.identity.ca import CertificateAuthority
from resilmesh.policy.inbound import AuthorizationPolicy
from resilmesh.policy.load import load_text

WEB, INVENTORY = (f"spiffe://shop.example/ns/prod/sa/{name}" for name in ("web", "inventory"))
#: Requests of a sample on one connection, and connections of a sample.
REQUESTS, HANDSHAKES = 200, 20
RULES, DECISIONS = 1000, 2000
MUTUAL = f', tls: {{mode: MUTUAL, identities: ["{INVENTORY}"]}}'


def identities(directory: Path) -> None:
    authority = CertificateAuthority.create(directory / "ca", "shop.example")
    for name, spiffe_id in (("web", WEB), ("inventory", INVENTORY)):
        (directory / name).mkdir()
        identity = authority.issue(SpiffeId.parse(spiffe_id))
        (directory / name / "tls.crt").write_bytes(identity.svid.chain_pem())
        (directory / name / "tls.key").write_bytes(identity.svid.key_pem())
        (directory / name / "ca.crt").write_bytes(identity.bundles["shop.example"].pem())


@contextlib.contextmanager
def service(directory: str) -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-m", "benchmarks.identity.server", directory], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def own_context(directory: Path) -> ssl.SSLContext:
    """As one would write it by hand: the chain is verified, and nobody's identity."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(directory / "web" / "ca.crt")
    context.load_cert_chain(directory / "web" / "tls.crt", directory / "web" / "tls.key")
    return context


def policy_text(address: str, tls: str) -> str:
    return f"""
apiVersion: resilmesh/v1
services: [{{name: inventory, hosts: [inventory.prod.svc], endpoints: [{{address: "{address}"}}]{tls}}}]
"""


@contextlib.contextmanager
def clients(directory: Path, plain: str, secured: str) -> Iterator[dict[str, tuple[Callable[[], httpx.Client], str]]]:
    """By name: what makes a client, and the URL that it calls."""
    of_policy = [
        resilmesh.Mesh.from_text(policy_text(address, tls), identity=str(directory / "web"))
        for address, tls in ((plain, ""), (secured, MUTUAL))
    ]
    context = own_context(directory)
    yield {
        "httpx, plain": (httpx.Client, f"http://{plain}/"),
        "httpx, same certificates": (lambda: httpx.Client(verify=context), f"https://{secured}/"),
        "resilmesh, plain": (lambda: httpx.Client(transport=resilmesh.http.Transport(of_policy[0], verify=context)), "http://inventory.prod.svc/"),
        "resilmesh, MUTUAL": (lambda: httpx.Client(transport=resilmesh.http.Transport(of_policy[1], verify=context)), "http://inventory.prod.svc/"),
    }
    for mesh in of_policy:
        mesh.close()


@contextlib.contextmanager
def pair(directory: Path, service: str, requests_per_connection: int | None = None) -> Iterator[str]:
    """The URL of an Envoy, from which mutual TLS goes to a second one before ``service``."""
    inbound = load_text("apiVersion: resilmesh/v1\ninbound: {mtls: STRICT}\n").policy
    host, _, port = service.rpartition(":")
    before = ingress(inbound, (host, int(port)), identity=IdentityFiles.in_directory(str(directory / "inventory")))
    if requests_per_connection is not None:
        for chain in before["static_resources"]["listeners"][0]["filter_chains"]:
            options = {"max_requests_per_connection": requests_per_connection}
            chain["filters"][0]["typed_config"]["common_http_protocol_options"] = options
    with Envoy(before) as second:
        outbound = load_text(policy_text(second.url.removeprefix("http://"), MUTUAL)).policy
        with Envoy(translate(outbound, identity=IdentityFiles.in_directory(str(directory / "web"))).bootstrap) as first:
            yield first.url + "/"


def through(url: str) -> tuple[Callable[[], httpx.Client], str]:
    return (lambda: httpx.Client(headers={"host": "inventory.prod.svc"})), url


def steady(make: Callable[[], httpx.Client], url: str, clock: Callable[[], int] = time.process_time_ns) -> Callable[[], float]:
    client = make()
    client.get(url).raise_for_status()

    def sample() -> float:
        began = clock()
        for _ in range(REQUESTS):
            client.get(url)
        return (clock() - began) / REQUESTS / 1000

    return sample


def handshakes(make: Callable[[], httpx.Client], url: str, clock: Callable[[], int] = time.process_time_ns) -> Callable[[], float]:
    def sample() -> float:
        made = [make() for _ in range(HANDSHAKES)]
        began = clock()
        for client in made:
            client.get(url)
        spent = clock() - began
        for client in made:
            client.close()
        return spent / HANDSHAKES / 1000

    return sample


PAIR = "two Envoys, MUTUAL"


def timed(
    sampler: Callable[..., Callable[[], float]], candidates: dict[str, tuple[Callable[[], httpx.Client], str]], rounds: int,
    rng: random.Random,
) -> Samples:
    """By the clock on the wall: what other processes do is in it."""
    return interleave({name: sampler(*candidate, time.perf_counter_ns) for name, candidate in candidates.items()}, rounds, rng)


# ------------------------------------------------------------------------------------------------- decisions


def authorizers() -> dict[str, tuple[Authorizer, InboundRequest]]:
    """By name: a thousand rules, and a request that the last of them allows."""
    def policies(rules: list[dict[str, Any]]) -> Authorizer:
        return Authorizer([AuthorizationPolicy.model_validate({"name": "a", "rules": rules})])

    def who(number: int) -> str:
        return f"shop.example/ns/prod/sa/caller-{number}"

    last = RULES - 1
    by_principal = [{"from_": [{"principals": [who(each)]}], "to": [{"paths": [f"/v{each}/*"]}]} for each in range(RULES)]
    by_path = [{"to": [{"paths": [f"/v{each}/items"]}]} for each in range(RULES)]
    by_prefix = [{"to": [{"paths": [f"/v{each}/*"]}]} for each in range(RULES)]
    request = InboundRequest("GET", f"/v{last}/items", principal=who(last))
    return {
        "exact principals": (policies(by_principal), request), "exact paths": (policies(by_path), request),
        "prefixes of paths": (policies(by_prefix), request),
    }


def decisions(authorizer: Authorizer, request: InboundRequest) -> Callable[[], float]:
    assert authorizer.decide(request).allowed
    count = DECISIONS

    def sample() -> float:
        began = time.process_time_ns()
        for _ in range(count):
            authorizer.decide(request)
        return (time.process_time_ns() - began) / count / 1000

    return sample


# --------------------------------------------------------------------------------------------------- report


def show(title: str, samples: Samples, base: str | None) -> None:
    print(f"\n{title}")
    for name, values in samples.items():
        beside = "" if base is None else f"   x{ratio(values, samples[base])}"
        print(f"  {name:28} {Spread.of(values).median:9.1f} us{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        identities(directory)
        with (
            service("-") as plain, service(str(directory / "inventory")) as secured, clients(directory, plain, secured) as candidates,
        ):
            per_request = interleave({each: steady(*candidate) for each, candidate in candidates.items()}, options.rounds, rng)
            first = interleave({each: handshakes(*candidate) for each, candidate in candidates.items()}, options.rounds, rng)
            secured_only = {name: candidate for name, candidate in candidates.items() if not name.endswith("plain")}
            with pair(directory, plain) as lasting, pair(directory, plain, requests_per_connection=1) as anew:
                took = timed(steady, {**secured_only, PAIR: through(lasting)}, options.rounds, rng)
                took_first = timed(handshakes, {**secured_only, PAIR: through(anew)}, options.rounds, rng)
    decided = interleave({each: decisions(*candidate) for each, candidate in authorizers().items()}, options.rounds, rng)
    show(f"client CPU of a request, {REQUESTS} on one connection", per_request, "httpx, same certificates")
    show("client CPU of a connection and its first request", first, "httpx, same certificates")
    show(f"time of a request, {REQUESTS} on one connection", took, PAIR)
    show("time of a connection and its first request, of the Envoys between them", took_first, PAIR)
    show(f"CPU of a decision, {RULES} rules", decided, None)
    if options.json:
        Path(options.json).write_text(json.dumps(
            {"request": per_request, "handshake": first, "time": took, "handshake_time": took_first, "decision": decided}, indent=1))


if __name__ == "__main__":
    main()

"""What identity costs: a request and a handshake under mutual TLS, beside httpx with the same certificates; a decision of a thousand rules.

    python -m benchmarks.identity [--rounds N] [--seed N] [--json FILE]

The service is a process of its own. Client CPU is counted (``time.process_time``), because the service's share of a machine with few
cores would hide the rest. Ratios are of the same rounds: median [quartiles].
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
from resilmesh.identity import SpiffeId
from resilmesh.identity.authz import Authorizer, InboundRequest
from resilmesh.identity.ca import CertificateAuthority
from resilmesh.policy.inbound import AuthorizationPolicy

WEB, INVENTORY = (f"spiffe://shop.example/ns/prod/sa/{name}" for name in ("web", "inventory"))
#: Requests of a sample on one connection, and connections of a sample.
REQUESTS, HANDSHAKES = 200, 20
RULES, DECISIONS = 1000, 2000


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


def clients(directory: Path, plain: str, secured: str) -> dict[str, tuple[Callable[[], httpx.Client], str]]:
    """By name: what makes a client, and the URL that it calls."""
    def mesh(address: str, tls: str) -> resilmesh.Mesh:
        text = f"""
apiVersion: resilmesh/v1
services: [{{name: inventory, hosts: [inventory.prod.svc], endpoints: [{{address: "{address}"}}]{tls}}}]
"""
        return resilmesh.Mesh.from_text(text, identity=str(directory / "web"))

    of_policy = mesh(plain, ""), mesh(secured, f', tls: {{mode: MUTUAL, identities: ["{INVENTORY}"]}}')
    context = own_context(directory)
    return {
        "httpx, plain": (httpx.Client, f"http://{plain}/"),
        "httpx, same certificates": (lambda: httpx.Client(verify=context), f"https://{secured}/"),
        "resilmesh, plain": (lambda: httpx.Client(transport=resilmesh.http.Transport(of_policy[0], verify=context)), "http://inventory.prod.svc/"),
        "resilmesh, MUTUAL": (lambda: httpx.Client(transport=resilmesh.http.Transport(of_policy[1], verify=context)), "http://inventory.prod.svc/"),
    }


def steady(make: Callable[[], httpx.Client], url: str) -> Callable[[], float]:
    client = make()
    client.get(url)

    def sample() -> float:
        began = time.process_time_ns()
        for _ in range(REQUESTS):
            client.get(url)
        return (time.process_time_ns() - began) / REQUESTS / 1000

    return sample


def handshakes(make: Callable[[], httpx.Client], url: str) -> Callable[[], float]:
    def sample() -> float:
        made = [make() for _ in range(HANDSHAKES)]
        began = time.process_time_ns()
        for client in made:
            client.get(url)
        spent = time.process_time_ns() - began
        for client in made:
            client.close()
        return spent / HANDSHAKES / 1000

    return sample


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
        with service("-") as plain, service(str(directory / "inventory")) as secured:
            candidates = clients(directory, plain, secured)
            per_request = interleave({each: steady(*candidate) for each, candidate in candidates.items()}, options.rounds, rng)
            first = interleave({each: handshakes(*candidate) for each, candidate in candidates.items()}, options.rounds, rng)
    decided = interleave({each: decisions(*candidate) for each, candidate in authorizers().items()}, options.rounds, rng)
    show(f"client CPU of a request, {REQUESTS} on one connection", per_request, "httpx, same certificates")
    show("client CPU of a connection and its first request", first, "httpx, same certificates")
    show(f"CPU of a decision, {RULES} rules", decided, None)
    if options.json:
        Path(options.json).write_text(json.dumps({"request": per_request, "handshake": first, "decision": decided}, indent=1))


if __name__ == "__main__":
    main()

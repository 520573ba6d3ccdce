"""The planes of mutual TLS: what stands on both sides of the wire, by the same policy and the same authority.

    bare                the client as it is and the service as it is, in plain text
    bare-tls            both with TLS as one writes it by hand: certificates of the authority are shown and verified, nobody asks whose
    library-plain       the library on both sides, by the policy without its TLS: client's transport, service's middleware
    library             by the policy: TLS in the client's process and in the service's, where callers are let in or not
    sidecar-pair-plain  two Envoys, by the policy without its TLS: one beside the client, one before the service
    sidecar-pair        two Envoys by the policy, with TLS between them and RBAC in the second

Client, service and server are the same everywhere. What a plane costs over the one without TLS is what mutual TLS costs there.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import resilmesh
from resilmesh.compare.scenarios import HOST, Scenario
from resilmesh.compare.service_asgi import Hosting
from resilmesh.compare.sides import Side
from resilmesh.compare.trust import Trust
from resilmesh.envoy.ingress import ingress
from resilmesh.envoy.process import Envoy
from resilmesh.envoy.sds import rotating
from resilmesh.envoy.tls import IdentityFiles
from resilmesh.envoy.translate import translate
from resilmesh.policy.load import load_text

BARE_TLS, LIBRARY_PLAIN, PAIR_PLAIN, SIDECAR_PAIR = "bare-tls", "library-plain", "sidecar-pair-plain", "sidecar-pair"
#: Each plane with mutual TLS, and the same without.
PLAIN_OF: Mapping[str, str] = {BARE_TLS: "bare", "library": LIBRARY_PLAIN, SIDECAR_PAIR: PAIR_PLAIN}
#: In the order of a report.
IDENTITY_PLANES = tuple(plane for secured, plain in PLAIN_OF.items() for plane in (plain, secured))
_LIBRARY = Path(resilmesh.__file__).parent.parent


def policy_of(plane: str, scenario: Scenario, addresses: list[str] | None = None) -> str:
    """The text by which a plane works."""
    return scenario.policy(addresses, scenario.plain_policy_file if plane in (LIBRARY_PLAIN, PAIR_PLAIN) else None)


def hosting(plane: str, scenario: Scenario, trust: Trust) -> dict[str, Hosting]:
    """What stands before each service in its own process, by its name."""
    assert scenario.identities is not None
    return {
        script.name: Hosting(
            policy=policy_of(plane, scenario) if plane in ("library", LIBRARY_PLAIN) else None,
            identity=str(trust.services[script.name]) if plane in (BARE_TLS, "library") else None,
            slow=trust.expires_late(script.name),
            # Envoy's listener does it on the way in.
            requests_per_connection=None if plane == SIDECAR_PAIR else scenario.identities.requests_per_connection,
            library_path=str(_LIBRARY),
        )
        for script in scenario.services
    }


@contextlib.contextmanager
def side_of(plane: str, scenario: Scenario, addresses: list[str], trust: Trust) -> Iterator[Side]:
    """The client's side of ``plane``, and the Envoys on both; what was started ends with the block."""
    callers = [str(each) for each in trust.callers]
    match plane:
        case "bare":
            yield Side([f"http://{address}" for address in addresses])
        case "bare-tls":
            yield Side([f"https://{address}" for address in addresses], identities=callers)
        case "library-plain":
            yield Side([f"http://{HOST}"], policy=policy_of(plane, scenario, addresses))
        case "library":
            yield Side([f"http://{HOST}"], policy=policy_of(plane, scenario, addresses), identities=callers)
        case "sidecar-pair-plain" | "sidecar-pair":
            with _envoys(plane, scenario, addresses, trust) as side:
                yield side
        case _:
            raise ValueError(f"there is no plane {plane!r} of mutual TLS")


@contextlib.contextmanager
def _envoys(plane: str, scenario: Scenario, addresses: list[str], trust: Trust) -> Iterator[Side]:
    """One before each service, and one beside each caller."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="resilmesh-compare-")))
        began = time.monotonic()
        before = _started(stack, [
            _inward(plane, scenario, script.name, address, trust, folder)
            for script, address in zip(scenario.services, addresses, strict=True)
        ])
        policy = load_text(policy_of(plane, scenario, [envoy.url.removeprefix("http://") for envoy in before])).policy
        beside = _started(stack, [
            _following(translate(policy, identity=IdentityFiles.in_directory(str(caller))).bootstrap, folder / f"caller-{number}")
            for number, caller in enumerate(trust.callers)
        ])
        names = {envoy.url.removeprefix("http://"): script.name for envoy, script in zip(before, scenario.services, strict=True)}
        yield Side(
            [envoy.url for envoy in beside], envoy=beside[0], others=[*beside[1:], *before], envoy_startup=time.monotonic() - began,
            names=names,
        )


def _inward(plane: str, scenario: Scenario, name: str, address: str, trust: Trust, folder: Path) -> dict[str, Any]:
    assert scenario.identities is not None
    host, _, port = address.rpartition(":")
    policy = load_text(policy_of(plane, scenario)).policy
    bootstrap = ingress(policy, (host, int(port)), identity=IdentityFiles.in_directory(str(trust.services[name])))
    most = scenario.identities.requests_per_connection
    if most is not None:
        for chain in bootstrap["static_resources"]["listeners"][0]["filter_chains"]:
            chain["filters"][0]["typed_config"]["common_http_protocol_options"] = {"max_requests_per_connection": most}
    return _following(bootstrap, folder / f"service-{name}")


def _following(bootstrap: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return rotating(bootstrap, folder)


def _started(stack: contextlib.ExitStack, bootstraps: list[dict[str, Any]]) -> list[Envoy]:
    """All at once: a scenario may have twenty callers."""
    envoys = [Envoy(bootstrap, drain=0.0) for bootstrap in bootstraps]

    def start(envoy: Envoy) -> Envoy:
        return stack.enter_context(envoy)

    with ThreadPoolExecutor(4) as pool:
        # All of them, whatever one of them says: what has begun is on the stack when this ends.
        began = [pool.submit(start, envoy) for envoy in envoys]
    return [each.result() for each in began]

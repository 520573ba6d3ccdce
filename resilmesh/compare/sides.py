"""What tells one plane from another: whom its client calls, with which policy, and through which Envoy."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from resilmesh.compare.defaults import with_envoys_defaults
from resilmesh.compare.native import native
from resilmesh.compare.scenarios import HOST, Scenario
from resilmesh.envoy.process import Envoy
from resilmesh.envoy.translate import translate
from resilmesh.policy.load import load_text


@dataclass(frozen=True, slots=True)
class Side:
    """One plane's, ready for calls. ``targets`` are base URLs, of gRPC ``host:port``."""

    targets: list[str]
    policy: str | None = None
    policy_file: str | None = None
    mode: Literal["ENFORCE", "OFF"] = "ENFORCE"
    envoy: Envoy | None = None
    envoy_startup: float = 0.0
    #: Puts a new policy, as text, where this plane looks for it.
    edit: Callable[[str], None] | None = None
    #: The Host header of every call.
    host: str = HOST
    #: Whether the services are the test bed's, which sign their answers.
    signed: bool = True
    #: grpcio's own, as JSON.
    service_config: str | None = None
    #: Directories with the identity of each caller.
    identities: Sequence[str] = ()
    #: Envoys beside ``envoy``: of other callers, and before the services.
    others: Sequence[Envoy] = ()
    #: Names of the endpoints by the addresses at which Envoy knows them, where these are not the test bed's.
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def envoys(self) -> list[Envoy]:
        return [] if self.envoy is None else [self.envoy, *self.others]


@contextlib.contextmanager
def side_of(plane: str, scenario: Scenario, addresses: list[str]) -> Iterator[Side]:
    """The side of ``plane`` for services at ``addresses``; what was started for it ends with the block."""
    scheme = "" if scenario.protocol == "GRPC" else "http://"
    endpoints = [scheme + address for address in addresses]
    policy = scenario.policy(addresses)
    match plane:
        case "bare":
            yield Side(endpoints)
        case "library-off":
            # Calls go to the endpoints themselves, as bare's do; the policy must still recognise them as its service's.
            yield Side(endpoints, policy=policy.replace(f"hosts: [{HOST}]", f"hosts: [{HOST}, 127.0.0.1]"), mode="OFF")
        case "library" if scenario.edits:
            with _folder() as folder:
                edit = _Rewrite(folder / "policy.yaml")
                edit(policy)
                yield Side([scheme + HOST], policy=policy, policy_file=str(edit.file), edit=edit)
        case "library":
            yield Side([scheme + HOST], policy=policy)
        case "sidecar" | "sidecar-defaults":
            with _folder() as folder, _envoy(policy, plane == "sidecar-defaults", folder if scenario.edits else None) as side:
                yield replace(side, targets=[target.replace("http://", scheme) for target in side.targets])
        case "grpc-native":
            # One channel that knows every endpoint: what is balanced, and how, is the service config's.
            config = native(load_text(policy).policy).service_config
            yield Side(["ipv4:" + ",".join(addresses)], service_config=json.dumps(config))
        case _:
            raise ValueError(f"there is no plane {plane!r}")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="resilmesh-compare-") as name:
        yield Path(name)


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """Replaces a file as a whole, by renaming: neither Envoy nor the library ever reads half of it."""

    file: Path

    def __call__(self, text: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        os.replace(new, self.file)


@contextlib.contextmanager
def _envoy(policy: str, defaults: bool, folder: Path | None) -> Iterator[Side]:
    """An Envoy with ``policy``. With a ``folder`` it watches a file there for its routes, so that they can be edited."""
    bootstrap = _bootstrap(policy, defaults)
    edit = None
    if folder is not None:
        rewrite = _Rewrite(folder / "routes.json")

        def edit(text: str) -> None:
            rewrite(_discovered(_manager(_bootstrap(text, defaults))["route_config"]))

        manager = _manager(bootstrap)
        rewrite(_discovered(manager["route_config"]))
        manager["rds"] = {
            "route_config_name": manager.pop("route_config")["name"],
            "config_source": {"path_config_source": {"path": str(rewrite.file)}, "resource_api_version": "V3"},
        }
    began = time.monotonic()
    with Envoy(bootstrap, drain=0.0) as envoy:
        yield Side([envoy.url], envoy=envoy, envoy_startup=time.monotonic() - began, edit=edit)


def _bootstrap(policy: str, defaults: bool) -> dict[str, Any]:
    loaded = load_text(policy).policy
    # Its histograms are added up when somebody asks for them, and not every five seconds.
    bootstrap = {**translate(loaded).bootstrap, "stats_flush_on_admin": True}
    return with_envoys_defaults(bootstrap, loaded) if defaults else bootstrap


def _manager(bootstrap: dict[str, Any]) -> dict[str, Any]:
    manager: dict[str, Any] = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _discovered(routes: dict[str, Any]) -> str:
    """Routes as the answer of a route discovery service."""
    return json.dumps({"resources": [{"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", **routes}]})

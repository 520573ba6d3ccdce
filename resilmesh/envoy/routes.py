"""Envoy's routes of one service: matches, splits, timeouts, retries, what is changed or copied, and the filters that each switches on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resilmesh.envoy.clusters import PASSTHROUGH, cluster, duration, forwarding
from resilmesh.envoy.filters import FAULT, Buckets, fault
from resilmesh.envoy.match import ANY_PATH, route_match
from resilmesh.envoy.retries import with_retries
from resilmesh.envoy.shaping import header_changes, mirror, rewrite
from resilmesh.envoy.tls import transport_socket
from resilmesh.policy.resolve import Effective, effective

if TYPE_CHECKING:
    from resilmesh.envoy.tls import IdentityFiles
    from resilmesh.policy.model import Match, Mirror, Policy, Service

Json = dict[str, Any]


class Routes:
    """Translates routes, and keeps the clusters and rate limits that they use."""

    def __init__(self, policy: Policy, files: IdentityFiles) -> None:
        self._policy = policy
        self._files = files
        self.clusters: dict[str, Json] = {}
        self.buckets = Buckets()
        self.uses_fault = False
        self.uses_passthrough = False

    def of_service(self, index: int) -> list[Json]:
        """The service's routes in order, and last one for every other request."""
        routes = self._policy.services[index].routes or []
        return [made for route in [*range(len(routes)), None] for made in self._translate(effective(self._policy, index, route))]

    def passthrough(self) -> Json:
        """A route that only forwards, to the host that the request names."""
        self.uses_passthrough = True
        return {"match": dict(ANY_PATH), "route": {"cluster": PASSTHROUGH, "timeout": "0s", "idle_timeout": "0s"}}

    def _forwarding(self, service: Service) -> Json:
        secured = self._secured(service)
        if not secured:
            return self.passthrough()
        name = f"{service.name}/forwarding"
        self.clusters.setdefault(name, forwarding(name, service, secured))
        return {"route": {"cluster": name, "timeout": "0s", "idle_timeout": "0s"}}

    def _secured(self, service: Service) -> Json:
        return transport_socket(service, self._files, self._policy.mesh.trust_domain)

    def _translate(self, blocks: Effective) -> list[Json]:
        conditions: list[Match | None] = [None] if blocks.route is None or blocks.route.match is None else [*blocks.route.match]
        name = {"name": blocks.service.name + (f"/{blocks.route.name}" if blocks.route else "")}
        if blocks.mode != "ENFORCE":
            return [{**name, **self._forwarding(blocks.service), "match": route_match(each)} for each in conditions]
        action = self._action(blocks)
        filters = self.buckets.switched_on_by(blocks)
        if blocks.fault is not None and blocks.fault.scope == "CALL":
            self.uses_fault = True
            filters[FAULT] = fault(blocks.fault)
        more = {**({"typed_per_filter_config": filters} if filters else {}), **header_changes(blocks.headers)}
        return [
            {**name, "match": match, "route": {**action, **retry}, **more}
            for condition in conditions
            for match, retry in with_retries(condition, blocks)
        ]

    def _action(self, blocks: Effective) -> Json:
        action: Json = {
            "timeout": duration(blocks.timeout or 0), "idle_timeout": duration(blocks.idle_timeout or 0), **rewrite(blocks.rewrite),
        }
        if blocks.mirror is not None:
            action |= mirror(blocks.mirror, self._mirror_cluster(blocks.mirror))
        cluster_name = self._cluster(blocks)
        if blocks.split is None:
            return {"cluster": cluster_name, **action}
        labels = {subset.name: subset.labels for subset in blocks.service.subsets or ()}
        shares = [
            {
                "name": cluster_name, "weight": target.weight,
                "metadata_match": {"filter_metadata": {"envoy.lb": dict(labels[target.subset])}},
            }
            for target in blocks.split
        ]
        return {"weighted_clusters": {"clusters": shares}, **action}

    def _cluster(self, blocks: Effective) -> str:
        name = blocks.service.name
        if blocks.route is not None and has_cluster_of_its_own(blocks):
            name += "/" + blocks.route.name
        return self._clustered(name, blocks)

    def _mirror_cluster(self, block: Mirror) -> str:
        """The service's own cluster; for a subset one with its endpoints only, because a mirror cannot name a subset."""
        index = next(index for index, each in enumerate(self._policy.services) if each.name == block.service)
        blocks = effective(self._policy, index, None)
        if blocks.mode != "ENFORCE":
            blocks = replace(blocks, concurrency=None, connect_timeout=None)
        if block.subset is None:
            return self._clustered(block.service, blocks)
        wanted = next(each.labels for each in blocks.service.subsets or () if each.name == block.subset)
        chosen = [each for each in blocks.service.endpoints or () if wanted.items() <= each.labels.items()]
        only = replace(blocks, service=blocks.service.model_copy(update={"endpoints": chosen}))
        return self._clustered(f"{block.service}/subset/{block.subset}", only)

    def _clustered(self, name: str, blocks: Effective) -> str:
        if name not in self.clusters:
            self.clusters[name] = cluster(name, blocks, self._secured(blocks.service))
        return name


def has_cluster_of_its_own(blocks: Effective) -> bool:
    """Whether a route says what Envoy can only say of a whole cluster: limits, and what outlier detection counts."""
    service = blocks.service
    ejects = blocks.outlier_detection is not None and service.endpoints is not None and service.protocol != "GRPC"
    return blocks.owned_by_route("concurrency") or (ejects and blocks.owned_by_route("classify"))

"""The policy's ``inbound`` block as the listener of a real Envoy in front of a service: mutual TLS, one form of a path, RBAC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilmesh.envoy.clusters import duration, socket_address
from resilmesh.envoy.filters import router
from resilmesh.envoy.match import TYPE
from resilmesh.envoy.rbac import rbac_filters
from resilmesh.envoy.tls import VERSIONS, IdentityFiles

if TYPE_CHECKING:
    from resilmesh.policy.model import Policy

Json = dict[str, Any]
Address = tuple[str, int]

_APP = "app"


def ingress(
    policy: Policy, app: Address, *, listen: Address = ("127.0.0.1", 0), admin: Address = ("127.0.0.1", 0),
    identity: IdentityFiles | None = None, http2: bool = False,
) -> Json:
    """The bootstrap of an Envoy that lets in whom ``inbound`` lets in, and passes their requests on to ``app`` in plain text.

    ``identity``: as of ``translate``. ``http2``: the protocol that the service speaks. Of ``inbound`` it has ``mtls`` and
    ``authorization``; ``trustedProxies``, the limits and ``fault`` it has not.
    """
    workload = policy.mesh.workload or "resilmesh"
    return {
        "node": {"id": workload, "cluster": workload},
        "admin": {"address": socket_address(*admin)},
        "static_resources": {
            "listeners": [_listener(policy, listen, identity or IdentityFiles.of_policy(policy))], "clusters": [_app(app, http2)],
        },
    }


def _listener(policy: Policy, address: Address, files: IdentityFiles) -> Json:
    mtls = "PERMISSIVE" if policy.inbound is None else policy.inbound.mtls
    plain: Json = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": _manager(policy)}]}
    secured = {**plain, "transport_socket": _transport_socket(files), "filter_chain_match": {"transport_protocol": "tls"}}
    chains = {"DISABLE": [plain], "STRICT": [secured], "PERMISSIVE": [secured, plain]}[mtls]
    made: Json = {
        "name": "ingress", "address": socket_address(*address), "traffic_direction": "INBOUND", "enable_reuse_port": False,
        "filter_chains": chains,
    }
    if mtls != "DISABLE":
        inspector = TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
        made["listener_filters"] = [{"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": inspector}}]
    return made


def _manager(policy: Policy) -> Json:
    policies = (policy.inbound and policy.inbound.authorization) or []
    return {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "stream_idle_timeout": "0s",
        "http_protocol_options": {"allow_custom_methods": True},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": True, "subject": True},
        "route_config": {
            "name": "ingress",
            "virtual_hosts": [{
                "name": "*", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": _APP, "timeout": "0s"}}],
            }],
        },
        "http_filters": [*rbac_filters(policies), router()],
    }


def _transport_socket(files: IdentityFiles) -> Json:
    common: Json = {
        "tls_params": VERSIONS, "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [{"certificate_chain": {"filename": files.certificate}, "private_key": {"filename": files.key}}],
        "validation_context": {"trusted_ca": {"filename": files.bundle}},
    }
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", "require_client_certificate": True,
            "common_tls_context": common,
        },
    }


def _app(address: Address, http2: bool) -> Json:
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = "http2_protocol_options" if http2 else "http_protocol_options"
    return {
        "name": _APP, "type": "STATIC", "connect_timeout": duration(5),
        "load_assignment": {
            "cluster_name": _APP, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(*address)}}]}],
        },
        "typed_extension_protocol_options": {kind: {"@type": TYPE + kind, "explicit_http_config": {options: {}}}},
    }

"""Envoy's TLS towards a service, and where its certificate is: the same files that the library reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from resilmesh.envoy.match import TYPE
from resilmesh.policy.identity_files import FEDERATED, FILE_NAMES

if TYPE_CHECKING:
    from resilmesh.policy.identity import IdentitySource, Tls
    from resilmesh.policy.model import Policy, Service

Json = dict[str, Any]

#: For a policy that does not say where its identity is.
DIRECTORY = "/run/identity"
#: TLS 1.3 where the service has it. Envoy: 1.2 at most, unless told.
VERSIONS = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}


class IdentityFiles(NamedTuple):
    """Paths of this workload's certificate, its key and the own trust domain's bundle; and of the bundles of federated ones, by domain."""

    certificate: str
    key: str
    bundle: str
    federated: Mapping[str, str]

    @classmethod
    def in_directory(cls, directory: str) -> IdentityFiles:
        """With the names that are there; of an empty directory those of ``resilmesh ca issue``."""
        found = next((names for names in FILE_NAMES if os.path.exists(os.path.join(directory, names[0]))), FILE_NAMES[0])
        certificate, key, bundle = (os.path.join(directory, name) for name in found)
        others = os.path.join(directory, FEDERATED)
        names = sorted(name for name in os.listdir(others) if name.endswith(".pem")) if os.path.isdir(others) else []
        return cls(certificate, key, bundle, {name.removesuffix(".pem"): os.path.join(others, name) for name in names})

    @classmethod
    def of_policy(cls, policy: Policy) -> IdentityFiles:
        """Those that ``mesh.identity`` names; for want of files those of ``DIRECTORY``."""
        source: IdentitySource | None = policy.mesh.identity
        if source is not None and source.certificate is not None and source.key is not None and source.bundle is not None:
            return cls(source.certificate, source.key, source.bundle, {each.trust_domain: each.bundle for each in source.federated or ()})
        return cls.in_directory(DIRECTORY if source is None or source.directory is None else source.directory)


def transport_socket(service: Service, files: IdentityFiles, trust_domain: str | None) -> Json:
    """What a cluster needs to reach a service by TLS: nothing where the policy asks for none. ``trust_domain``: the own one."""
    tls = service.tls
    if tls is None or tls.mode == "DISABLE":
        return {}
    context: Json = {
        "@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "tls_params": VERSIONS,
            "alpn_protocols": ["http/1.1" if service.protocol == "HTTP1" else "h2"],
            "validation_context": _validation(tls, files, trust_domain),
        },
    }
    if tls.mode == "MUTUAL":
        certificate = {"certificate_chain": {"filename": files.certificate}, "private_key": {"filename": files.key}}
        context["common_tls_context"]["tls_certificates"] = [certificate]
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def takes_names_from_the_request(service: Service) -> Json:
    """The part of a cluster's HTTP options by which the server's name is the host that the caller wrote."""
    tls = service.tls
    if tls is None or tls.mode == "DISABLE":
        return {}
    proves_host = not (tls.identities or tls.dns_sans)
    return {"upstream_http_protocol_options": {"auto_sni": True, **({"auto_san_validation": True} if proves_host else {})}}


def _validation(tls: Tls, files: IdentityFiles, trust_domain: str | None) -> Json:
    if not (tls.identities or tls.dns_sans):
        return {"system_root_certs": {}}
    kind, names = ("URI", tls.identities) if tls.identities else ("DNS", tls.dns_sans)
    made: Json = {"match_typed_subject_alt_names": [{"san_type": kind, "matcher": _exactly(kind, each)} for each in names or ()]}
    domains = sorted({each.removeprefix("spiffe://").partition("/")[0] for each in tls.identities or ()})
    foreign = [each for each in domains if each in files.federated and each != trust_domain]
    if not foreign:
        return {**made, "trusted_ca": {"filename": files.bundle}}
    # Each domain by its own bundle: with all roots in one file any of them could vouch for anybody.
    bundles = [{"name": each, "trust_bundle": {"filename": files.federated.get(each, files.bundle)}} for each in domains]
    return {
        **made,
        "custom_validator_config": {
            "name": "envoy.tls.cert_validator.spiffe",
            "typed_config": {
                "@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig", "trust_domains": bundles,
            },
        },
    }


def _exactly(kind: str, name: str) -> Json:
    return {"exact": name, "ignore_case": True} if kind == "DNS" else {"exact": name}

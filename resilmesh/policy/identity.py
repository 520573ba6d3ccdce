"""``mesh.identity``: where this workload's certificate comes from; ``tls``: what a service must prove, and whether we do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from resilmesh.policy.fields import Block, approximates, field, library_only, maps_to, shaped

SpiffeId = Annotated[str, shaped(
    "a SPIFFE ID of a workload, such as spiffe://shop.example/ns/prod/sa/web", r"^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+$",
    max_length=2048,
)]
TrustDomain = Annotated[str, shaped("a SPIFFE trust domain in lower case", r"^[a-z0-9._-]+$", max_length=255)]
DnsName = Annotated[str, shaped("a DNS name", r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$", max_length=253)]
Address = Annotated[str, shaped("unix:///path", r"^unix:(//)?/.+", max_length=4096)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]

_SANS = "UpstreamTlsContext.common_tls_context.combined_validation_context.match_typed_subject_alt_names"


class Tls(Block):
    """Transport security towards the service. No mode of the policy (OBSERVE, OFF) takes it away."""

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL"] = field(
        "DISABLE: as the URL, or the channel's credentials, say. SIMPLE: the service proves who it is. MUTUAL: both do. TLS is added "
        "to http:// URLs and to channels without credentials; there is no falling back to plain text.",
        envoy=approximates(
            "cluster.transport_socket", "Under DISABLE Envoy speaks plain text, whatever the URL says.",
            exact_for=("SIMPLE", "MUTUAL"),
        ),
    )
    identities: list[SpiffeId] | None = field(
        "SPIFFE IDs the service may prove, any of them. Over gRPC one, which is proved by the DNS SAN that resilmesh's own authority "
        "derives from it.", None,
        envoy=maps_to(_SANS), min_length=1,
    )
    dns_sans: list[DnsName] | None = field(
        "DNS names the service may prove, any of them, where no SPIFFE ID can be checked: no `identities`, or gRPC with certificates of "
        "another authority. Over gRPC one.", None,
        envoy=maps_to(_SANS), min_length=1,
    )


class FederatedBundle(Block):
    """Who may vouch for the identities of another trust domain."""

    trust_domain: TrustDomain = field("The other trust domain.")
    bundle: FilePath = field("A file with the certificates of its authorities, in PEM.")


class IdentitySource(Block):
    """Where this workload's certificate (an X.509-SVID), its key and the trust bundle come from. Exactly one of three ways.

    Files are looked at every second, and used only as a whole; paths are relative to where the program was started.
    """

    directory: FilePath | None = field(
        "A directory with tls.crt, tls.key and ca.crt (cert-manager, `resilmesh ca issue`), or svid.pem, svid_key.pem and "
        "svid_bundle.pem (SPIRE's helper); bundles of federated trust domains as federated/DOMAIN.pem.", None,
        envoy=library_only("An Envoy is given its files, or its secret server, by whoever starts it: `export envoy --identity`."),
    )
    certificate: FilePath | None = field(
        "A file with the certificate, and those between it and a root, in PEM.", None, envoy=library_only("As `directory`."),
    )
    key: FilePath | None = field("A file with its private key, in PEM.", None, envoy=library_only("As `directory`."))
    bundle: FilePath | None = field(
        "A file with the certificates of the authorities of the own trust domain, in PEM.", None, envoy=library_only("As `directory`."),
    )
    federated: list[FederatedBundle] | None = field(
        "Bundles of other trust domains, beside `certificate`, `key` and `bundle`.", None,
        envoy=library_only("As `directory`."), min_length=1,
    )
    workload_api: Address | None = field(
        "Address of a SPIFFE Workload API, such as unix:///run/spire/agent.sock. Needs resilmesh[spire].", None,
        envoy=library_only("As `directory`."),
    )

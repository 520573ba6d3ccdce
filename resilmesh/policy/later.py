"""Blocks that are known and validated but not enforced yet; ``check`` and ``Mesh`` refuse a policy that uses one.

They are complete and documented, so that a policy can be written and reviewed ahead of the version that acts on it.
The fields that hold them carry ``later=True``. A block leaves this file when it is enforced.
"""

from __future__ import annotations

from typing import Annotated, Literal

from resilmesh.policy.fields import Block, field, maps_to, shaped

SpiffeId = Annotated[str, shaped(
    "a SPIFFE ID, such as spiffe://shop.example/ns/prod/sa/web", r"^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$", max_length=2048,
)]
DnsName = Annotated[str, shaped("a DNS name", r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$", max_length=253)]


class Tls(Block):
    """Transport security towards the service."""

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL"] = field(
        "DISABLE: plain text. SIMPLE: the service proves who it is. MUTUAL: both do.", envoy=maps_to("cluster.transport_socket"),
    )
    identities: list[SpiffeId] | None = field(
        "SPIFFE IDs the service may prove, any of them.", None,
        envoy=maps_to("UpstreamTlsContext.common_tls_context.combined_validation_context.match_typed_subject_alt_names"), min_length=1,
    )
    dns_sans: list[DnsName] | None = field(
        "DNS names the service may prove, where no SPIFFE ID can be checked.", None,
        envoy=maps_to("UpstreamTlsContext.common_tls_context.combined_validation_context.match_typed_subject_alt_names"), min_length=1,
    )

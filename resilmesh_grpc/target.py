"""What a channel is for: a host of the policy, or the name of one of its services, in gRPC's way of writing it."""

from __future__ import annotations

from typing import NamedTuple

#: Schemes after which a host stands; of any other (``unix:``, ``xds:``) the whole is a name.
_SCHEMES = ("dns", "ipv4", "ipv6", "passthrough")


class Target(NamedTuple):
    """A channel's target, taken apart. ``port`` is 0 where none is written; ``authority`` is what calls say they are for."""

    text: str
    host: str
    port: int
    authority: str


def parse(target: str) -> Target:
    """Take a target apart. Raises ``TypeError`` for what is no text and ``ValueError`` for what names nothing."""
    if not isinstance(target, str):
        raise TypeError(f"the target is a host such as 'inventory.prod.svc:50051', or a service's name, not {target!r}")
    rest = target.strip()
    scheme, colon, after = rest.partition(":")
    if colon and scheme in _SCHEMES:
        # dns:host, dns:///host and dns://resolver/host are one host.
        rest = after.rpartition("/")[2] if after.startswith("/") else after
    elif "://" in rest:
        raise ValueError(f"{target!r} is a URL, and a gRPC target is none: write 'host:port'")
    if not rest:
        raise ValueError(f"the target {target!r} names no host")
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.endswith("]")):
        host, port = rest, "0"
    return Target(target, host.strip("[]"), int(port), rest)


def without_port(authority: str) -> str:
    """``host`` of ``host:port``."""
    host, colon, port = authority.rpartition(":")
    return host if colon and port.isdigit() and (":" not in host or host.endswith("]")) else authority

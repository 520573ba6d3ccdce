"""Who we are and whom we talk to: SPIFFE IDs, certificates, trust bundles, where they come from, and what they are allowed."""

from __future__ import annotations

from resilmesh.identity.files import FileSource
from resilmesh.identity.source import Fixed, Source
from resilmesh.identity.spiffe import IdentityError, InvalidSpiffeId, SpiffeId

__all__ = ["FileSource", "Fixed", "IdentityError", "InvalidSpiffeId", "Source", "SpiffeId"]

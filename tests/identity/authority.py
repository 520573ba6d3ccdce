"""An authority of the library whose time a test sets."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from resilmesh.identity.ca import CertificateAuthority

START = datetime.datetime(2026, 11, 24, 7, 0, tzinfo=datetime.UTC)
WEB = "spiffe://shop.example/ns/prod/sa/web"
INVENTORY = "spiffe://shop.example/ns/prod/sa/inventory"
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


class Clock:
    """Stands still unless it is told."""

    def __init__(self, at: datetime.datetime = START) -> None:
        self.at = at

    def __call__(self) -> datetime.datetime:
        return self.at

    def go(self, seconds: float) -> None:
        self.at += datetime.timedelta(seconds=seconds)

    @property
    def seconds(self) -> float:
        return self.at.timestamp()


def make(tmp_path: Path, clock: Clock | None = None, **options: Any) -> CertificateAuthority:
    """In ``tmp_path / "ca"``."""
    return CertificateAuthority.create(tmp_path / "ca", "shop.example", clock=clock or Clock(), **options)

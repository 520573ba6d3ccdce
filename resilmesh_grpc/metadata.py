"""A call's metadata, as the policy looks at it: by name, without case, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilmesh.engine.shape import HeaderEdit

#: What grpcio takes: pairs of a lower-case name and text, or bytes where the name ends in ``-bin``.
Metadata = Iterable[tuple[str, Any]]


def again(metadata: Metadata | None) -> Metadata | None:
    """Metadata that can be looked at and sent more than once, also where the caller gave an iterator."""
    return tuple(metadata) if hasattr(metadata, "__next__") else metadata  # type: ignore[arg-type]  # an iterator is an iterable


class Headers:
    """Metadata for matching: httpx's Headers, as far as the engine asks."""

    __slots__ = ("_pairs", "asked")

    def __init__(self, metadata: Metadata | None) -> None:
        self._pairs: Sequence[tuple[str, Any]] = tuple(metadata or ())
        #: Somebody looked: what was decided may be otherwise for other metadata.
        self.asked = False

    def get_list(self, name: str) -> list[str]:
        """Every value that is sent under a name."""
        self.asked = True
        return [_text(value) for key, value in self._pairs if key.lower() == name]

    def get(self, name: str) -> str | None:
        """The first of them."""
        return next(iter(self.get_list(name)), None)


def _text(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)
    from base64 import b64encode

    # As it is sent (gRPC's "-bin" metadata), and as a proxy would compare it.
    return b64encode(value).decode().rstrip("=")


def changed(metadata: Metadata | None, edit: HeaderEdit) -> list[tuple[str, Any]]:
    """Metadata with the policy's changes to request headers."""
    pairs: list[Any] = [(name.encode(), value) for name, value in metadata or ()]  # their values are passed on as they are
    put = edit([])
    kept = edit(pairs)
    return [(name.decode(), value) for name, value in kept[:len(kept) - len(put)]] + [_written(name, value) for name, value in put]


def _written(name: bytes, value: bytes) -> tuple[str, Any]:
    """A value of the policy, which is written as it is sent: grpcio encodes what is binary itself."""
    if not name.endswith(b"-bin"):
        return name.decode(), value.decode("latin-1")
    from base64 import b64decode

    return name.decode(), b64decode(value + b"=" * (-len(value) % 4))

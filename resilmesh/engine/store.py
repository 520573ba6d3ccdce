"""What outlives a policy: state by key, claimed by each new policy and retuned in place.

A key is ``(kind, service, route or "*", detail)``. A compilation claims what it needs; nothing is changed before all
of it succeeded. Then ``commit`` retunes what is kept and forgets what nobody claimed (calls in flight
hold their own references and end on it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, cast

Key = tuple[str, str, str, str]


class State(Protocol):
    """What the store needs of everything it keeps."""

    def after_fork(self) -> None: ...


S = TypeVar("S", bound=State)


class Store:
    """State by key. One per mesh."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[Key, State] = {}

    def claims(self) -> Claims:
        """Begin a compilation."""
        return Claims(self._kept)

    def commit(self, claims: Claims) -> None:
        """Make a compilation's claims the state of the mesh."""
        for retune in claims.retunes:
            retune()
        self._kept = claims.claimed

    def of_kind(self, kind: str) -> Iterator[tuple[Key, Any]]:
        """Every kept state of a kind, with its key."""
        return ((key, state) for key, state in list(self._kept.items()) if key[0] == kind)

    def after_fork(self) -> None:
        """In a child: nothing is in flight, nobody waits, and no lock is held by a thread that is not here."""
        for state in self._kept.values():
            state.after_fork()


class Claims:
    """The state that one compilation needs."""

    __slots__ = ("_kept", "claimed", "retunes")

    def __init__(self, kept: dict[Key, State]) -> None:
        self._kept = kept
        self.claimed: dict[Key, State] = {}
        self.retunes: list[Callable[[], None]] = []

    def claim(self, key: Key, make: Callable[[], S], retune: Callable[[S], None]) -> S:
        """The state of ``key``: this compilation's, the one that is kept (to be retuned), or a new one."""
        if key in self.claimed:
            return cast(S, self.claimed[key])
        kept = self._kept.get(key)
        if kept is None:
            state = make()
        else:
            state = cast(S, kept)
            self.retunes.append(lambda: retune(state))
        self.claimed[key] = state
        return state

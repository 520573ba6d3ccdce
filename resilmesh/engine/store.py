"""What outlives a policy: state by key, claimed by each new policy and retuned in place.

A key is ``(kind, service, route or "*", detail)``. A compilation claims what it needs; nothing is changed before all
of it succeeded. Then ``commit`` retunes what is kept and forgets what nobody claimed (calls in flight
hold their own references and end on it).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol, TypeVar, cast

from resilmesh.state.ledger import Ledger

Key = tuple[str, str, str, str]


class State(Protocol):
    """What the store needs of everything it keeps."""

    def after_fork(self) -> None: ...


S = TypeVar("S", bound=State)


class Store:
    """State by key. One per mesh. ``lock`` is held while claims become its state, and by who claims for a single service."""

    __slots__ = ("_kept", "ledger", "lock")

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._kept: dict[Key, State] = {}
        #: Where what is counted is kept.
        self.ledger = ledger or Ledger()
        self.lock = threading.Lock()

    def claims(self) -> Claims:
        """Begin a compilation."""
        return Claims(self._kept)

    def commit(self, claims: Claims, services: Collection[str], pause: Callable[[], None] = lambda: None) -> None:
        """Make the claims of a policy with these ``services`` the state of the mesh.

        What a service that was compiled does not claim is forgotten, and all of a service that is not there any more.
        """
        with self.lock:
            for retune in claims.retunes:
                retune()
                pause()
            left = {key: state for key, state in self._kept.items() if key[1] in services and key[1] not in claims.services}
            self._kept = {**left, **claims.claimed}

    def adopt(self, claims: Claims, *, retune: bool) -> None:
        """Add the claims of one more service. Under ``lock``."""
        for each in claims.retunes if retune else ():
            each()
        self._kept.update(claims.claimed)

    def services(self) -> set[str]:
        """Names of the services that have state: those that have been called."""
        return {key[1] for key in list(self._kept)}

    def of_kind(self, kind: str) -> Iterator[tuple[Key, Any]]:
        """Every kept state of a kind, with its key."""
        return ((key, state) for key, state in list(self._kept.items()) if key[0] == kind)

    def after_fork(self) -> None:
        """In a child: nothing is in flight, nobody waits, and no lock is held by a thread that is not here."""
        self.lock = threading.Lock()
        for state in self._kept.values():
            state.after_fork()


class Claims:
    """The state that one compilation needs."""

    __slots__ = ("_kept", "claimed", "retunes", "services")

    def __init__(self, kept: dict[Key, State]) -> None:
        self._kept = kept
        self.claimed: dict[Key, State] = {}
        self.retunes: list[Callable[[], None]] = []
        #: Services that were compiled.
        self.services: set[str] = set()

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

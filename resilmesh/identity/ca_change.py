"""One change of an authority, made under its lock: from a state that is read anew to one that is committed.

Order matters, and is the same for all: new keys and certificates, a line in the record, the revocation lists, ``ca.json``, the bundle,
and last the keys that nobody needs any more. So what the record lacks has not happened.
"""

from __future__ import annotations

import datetime
import math
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from resilmesh.identity import ca_certificates
from resilmesh.identity.ca_store import Intermediate, Root, State, Store, from_text, to_text
from resilmesh.identity.spiffe import IdentityError
from resilmesh.identity.svid import TrustBundle

#: Seconds until a revocation list has to be replaced. It is made anew when half of them are over and something is issued.
CRL_LIFE = 7 * 86400.0


class Keys:
    """Keys and certificates by name, read once: a name never gets another. Serves any number of threads."""

    def __init__(self, store: Store, password: bytes | None) -> None:
        self._store = store
        self.password = password
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self._certificates: dict[str, x509.Certificate] = {}

    def certificate(self, name: str) -> x509.Certificate:
        """Of a root or an intermediate, such as ``root-1``. Raises ``IdentityError``."""
        found = self._certificates.get(name)
        if found is None:
            found = self._certificates[name] = self._store.certificate(name)
        return found

    def key(self, name: str, *, encrypted: bool) -> ec.EllipticCurvePrivateKey:
        """Raises ``IdentityError``, also for a password that is missing or wrong."""
        if encrypted and self.password is None:
            raise IdentityError(f"the keys in {self._store.directory} are encrypted, and there is no password")
        found = self._keys.get(name)
        if found is None:
            found = self._keys[name] = self._store.key(name, self.password)
        return found

    def bundle(self, state: State) -> TrustBundle:
        """The roots that are to be trusted."""
        return TrustBundle(state.trust_domain, tuple(self.certificate(each.name) for each in state.trusted))


class Change:
    """``state`` may be changed until ``commit``; ``now`` is the time of all of it."""

    def __init__(self, store: Store, keys: Keys, state: State, now: datetime.datetime, asked_by: str | None) -> None:
        self.store, self.keys, self.state, self.now = store, keys, state, now
        self._asked_by = asked_by

    @classmethod
    @contextmanager
    def begin(cls, store: Store, keys: Keys, now: datetime.datetime, asked_by: str | None) -> Iterator[Self]:
        """Hold the lock for as long as the block runs. Raises ``IdentityError``."""
        with store.locked():
            yield cls(store, keys, store.load(), now, asked_by)

    @property
    def where(self) -> str:
        """The directory, for an error."""
        return str(self.store.directory)

    # ------------------------------------------------------------------------------------------- makes

    def add_root(self, phase: str) -> Root:
        """A new root, with its key."""
        name, key = self.state.next_name("root"), ca_certificates.new_key()
        life = datetime.timedelta(seconds=self.state.root_life)
        certificate = ca_certificates.root(name, self.state.trust_domain, key, self.now, life)
        self.store.add(name, certificate, key, self.keys.password)
        self.state.roots.append(Root(name, phase, to_text(self.now)))
        return self.state.roots[-1]

    def add_intermediate(self, root: Root) -> Intermediate:
        """A new intermediate below a root, which from now on signs in place of the one before."""
        name, key = self.state.next_name("intermediate"), ca_certificates.new_key()
        life = datetime.timedelta(seconds=self.state.intermediate_life)
        certificate = ca_certificates.intermediate(
            name, self.state.trust_domain, key.public_key(), self.keys.certificate(root.name), self.key(root.name), self.now, life,
        )
        self.store.add(name, certificate, key, self.keys.password)
        for each in self.state.intermediates:
            each.active = False
        self.state.intermediates.append(Intermediate(name, root.name, True, to_text(self.now)))
        return self.state.intermediates[-1]

    def key(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Of a root or an intermediate. Raises ``IdentityError``."""
        return self.keys.key(name, encrypted=self.state.encrypted)

    def check_password(self) -> None:
        """Raises ``IdentityError``: a new key must not be written with another password, or without one."""
        self.key(self.state.active.name)

    # ------------------------------------------------------------------------------------------ commits

    def record(self, **line: Any) -> None:
        """Add a line to the record, with the time and who asked."""
        self.store.record({"time": to_text(self.now), **line, "asked_by": self._asked_by or _user()})

    def mark_issued(self, issuer: Intermediate, until: datetime.datetime) -> None:
        """Remember that a leaf lives until then, before anybody has it: or its root could be retired too early."""
        marked = from_text(issuer.issued_until)
        if until > marked:
            # Whole minutes, so that this is not written for every leaf.
            issuer.issued_until = to_text(datetime.datetime.fromtimestamp(math.ceil(until.timestamp() / 60) * 60, datetime.UTC))
        due = self.state.crl_due <= to_text(self.now)
        if until > marked or due:
            self.commit(lists=due)

    def commit(self, *, lists: bool) -> None:
        """Make it real; ``lists``: with new revocation lists."""
        if lists:
            self._write_lists()
        self.store.save(self.state)
        self.store.write("bundle.pem", self.keys.bundle(self.state).pem())

    def _write_lists(self) -> None:
        self.state.revoked = [each for each in self.state.revoked if each.until >= to_text(self.now)]
        self.state.crl_number += 1
        next_update = self.now + datetime.timedelta(seconds=CRL_LIFE)
        self.state.crl_due = to_text(self.now + datetime.timedelta(seconds=CRL_LIFE / 2))
        made = []
        for issuer in self._signers():
            revoked = [(int(each.serial, 16), from_text(each.since)) for each in self.state.revoked if each.issuer == issuer.name]
            above, key = self.keys.certificate(issuer.name), self.key(issuer.name)
            made.append(ca_certificates.revocation_list(revoked, self.state.crl_number, above, key, self.now, next_update))
        self.store.write("crl.pem", b"".join(each.public_bytes(serialization.Encoding.PEM) for each in made))

    def _signers(self) -> list[Intermediate]:
        """The intermediates that have to say which of their leaves are revoked."""
        trusted = {each.name for each in self.state.trusted}
        return [
            each for each in self.state.intermediates
            if each.root in trusted and (each.active or each.issued_until >= to_text(self.now)) and self.store.has_key(each.name)
        ]

    def forget_keys(self) -> None:
        """After ``commit``: a key that nobody needs any more cannot be stolen. An old root signs nothing again."""
        needed = {each.name for each in self._signers()}
        needed |= {each.name for each in self.state.roots if each.phase in ("announced", "active")}
        for name in {each.name for each in self.state.roots} | {each.name for each in self.state.intermediates}:
            if name not in needed:
                self.store.forget_key(name)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"

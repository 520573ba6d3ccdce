"""A certificate authority of one trust domain in a directory: makes SVIDs, rotates its own keys, revokes, and records all of it.

    authority = CertificateAuthority.create("ca", "shop.example")
    identity = authority.issue("spiffe://shop.example/ns/prod/sa/web")            certificate, key and bundle
    issued = authority.sign(request_pem, "spiffe://shop.example/ns/prod/sa/web")  for a key that stays with its owner

Who may have which SPIFFE ID is not decided here: whoever calls ``issue`` and ``sign`` has made sure of it.

Any number of threads and processes may use one directory; see ``ca_store`` for the files, ``ca_change`` for how they change,
``ca_certificates`` for what is in a certificate, ``ca_request`` for what is taken from a request, and ``ca_rotation`` for the steps of
a rotation.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from resilmesh.identity import ca_certificates, ca_rotation
from resilmesh.identity.ca_change import Change, Keys
from resilmesh.identity.ca_request import all_dns_names, key_digest, key_of_request
from resilmesh.identity.ca_store import Revoked, State, Store, to_text
from resilmesh.identity.spiffe import SCHEME, IdentityError, SpiffeId, parse_trust_domain
from resilmesh.identity.svid import Chain, Identity, Svid, TrustBundle
from resilmesh.units import format_duration

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
#: Seconds that a leaf lives at least: with less, a renewal that fails once is an outage.
MIN_TTL = MINUTE
#: Seconds; a root that nobody will live to replace is no plan.
LONGEST_ROOT = 36500 * DAY
#: Keys are encrypted by PKCS #8 with PBKDF2 and few rounds (2,048), which a word from a dictionary does not survive.
SHORTEST_PASSWORD = 16
#: Of what is refused, so many characters are recorded.
_SHOWN = 1000

Clock = Callable[[], datetime.datetime]


def system_clock() -> datetime.datetime:
    """Now, by the operating system."""
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, slots=True)
class Issued(Chain):
    """A new certificate with those up to the root, the leaf first, and the bundle that vouches for it."""

    chain: tuple[x509.Certificate, ...]
    bundle: TrustBundle


class Entry(NamedTuple):
    """One certificate that was issued, as the record has it. Times are texts such as ``2026-11-24T07:00:00Z``."""

    serial: str
    spiffe_id: str
    dns: list[str]
    not_before: str
    not_after: str
    issuer: str
    asked_by: str
    revoked: str | None
    """Since when; ``None``: it is not, or is over."""


class CertificateAuthority:
    """Made by ``create`` or ``open``. Serves any number of threads. Nothing that it returns or records has a key of its own."""

    def __init__(self, store: Store, keys: Keys, clock: Clock) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock

    @classmethod
    def create(
        cls, directory: str | os.PathLike[str], trust_domain: str, *, password: bytes | None = None, root_ttl: float = 3650 * DAY,
        intermediate_ttl: float = 365 * DAY, default_ttl: float = HOUR, max_ttl: float = DAY, clock: Clock = system_clock,
    ) -> Self:
        """A new authority with a root and an intermediate, in a directory that is new or empty.

        ``password`` encrypts its keys; 16 bytes at least. The ``ttl``s are seconds: of the root, of the intermediate, of a leaf
        where none is asked for, and of a leaf at most. Raises ``IdentityError``.
        """
        parse_trust_domain(trust_domain)
        if password is not None and len(password) < SHORTEST_PASSWORD:
            raise IdentityError(f"the password has {len(password)} bytes: give {SHORTEST_PASSWORD} or more, at random")
        if not (MIN_TTL <= default_ttl <= max_ttl <= intermediate_ttl / 2 and 2 * intermediate_ttl <= root_ttl <= LONGEST_ROOT):
            raise IdentityError(
                f"the lives do not fit: a leaf has a minute at least, not {default_ttl:g} s; at most {max_ttl:g} s, which is not less and "
                f"is half of the intermediate's at most; that has {intermediate_ttl:g} s, which is half of the root's at most; that has "
                f"{root_ttl:g} s, and {LONGEST_ROOT:g} s at most"
            )
        store = Store.make(directory)
        authority = cls(store, Keys(store, password), clock)
        state = State(trust_domain, password is not None, root_ttl, intermediate_ttl, default_ttl, max_ttl, roots=[], intermediates=[])
        with store.locked():
            change = Change(store, authority._keys, state, authority._now(), None)
            root = change.add_root("active")
            change.add_intermediate(root)
            change.record(action="init", trust_domain=trust_domain, root=root.name)
            change.commit(lists=True)
        return authority

    @classmethod
    def open(cls, directory: str | os.PathLike[str], password: bytes | None = None, *, clock: Clock = system_clock) -> Self:
        """One that exists. Without ``password``, one whose keys are encrypted still shows its bundle and what it issued.

        Raises ``IdentityError``, also for a wrong password.
        """
        store = Store(directory)
        state = store.load()
        if not state.encrypted:
            password = None
        keys = Keys(store, password)
        if password is not None:
            keys.key(state.active.name, encrypted=True)
        return cls(store, keys, clock)

    # ---------------------------------------------------------------------------------------- to look at

    def state(self) -> State:
        """What is in force: a copy."""
        return self._store.load()

    def bundle(self) -> TrustBundle:
        """The roots that are to be trusted now."""
        return self._keys.bundle(self._store.load())

    def certificate(self, name: str) -> x509.Certificate:
        """Of a root or an intermediate by its name, such as ``root-1``. Raises ``IdentityError``."""
        return self._keys.certificate(name)

    def entries(self, *, all: bool = False) -> list[Entry]:
        """What it issued and is still good, or with ``all`` all of it, the oldest first: from the record."""
        now, state = to_text(self._now()), self._store.load()
        return [each for each in self._entries(state) if all or (each.not_after >= now and each.revoked is None)]

    def advice(self) -> list[str]:
        """What its keeper should do soon, in words: the next step of a rotation, and what is about to end."""
        state, now, where = self._store.load(), self._now(), str(self._store.directory)
        found = []
        if state.root_in("announced") or state.root_in("old"):
            found.append(f"a rotation is under way; next: {ca_rotation.next_step(state, where)}")
        active = state.root_in("active")
        root_ends = self._ends_soon(active.name, now) if active else None
        if root_ends and not state.root_in("announced"):
            found.append(f"the root ends at {root_ends}: resilmesh ca rotate {where}")
        if ends := self._ends_soon(state.active.name, now):
            found.append(f"the intermediate ends at {ends}: resilmesh ca rotate {where} --intermediate")
        return found

    def _ends_soon(self, name: str, now: datetime.datetime) -> str | None:
        """When it ends, in the last fifth of its life: no leaf outlives it."""
        certificate = self.certificate(name)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return to_text(ends) if ends - now < (ends - begins) / 5 else None

    def _entries(self, state: State) -> Iterator[Entry]:
        revoked = {each.serial: each.since for each in state.revoked}
        for line in self._store.records():
            if line.get("action") == "issue":
                yield Entry(
                    line["serial"], line["spiffe_id"], line["dns"], line["not_before"], line["not_after"], line["issuer"],
                    line["asked_by"], revoked.get(line["serial"]),
                )

    # ------------------------------------------------------------------------------------------- to issue

    def issue(
        self, spiffe_id: str | SpiffeId, *, ttl: float | None = None, dns: Iterable[str] = (), asked_by: str | None = None,
    ) -> Identity:
        """An identity with a new key, which is nowhere but in what this returns. As ``sign``."""
        key = ca_certificates.new_key()
        with self._refusals_recorded(spiffe_id, asked_by):
            issued = self._certify(key.public_key(), spiffe_id, ttl, dns, asked_by)
        return Identity.of(Svid.of(issued.chain, key), [issued.bundle])

    def sign(
        self, request: bytes, spiffe_id: str | SpiffeId, *, ttl: float | None = None, dns: Iterable[str] = (), asked_by: str | None = None,
    ) -> Issued:
        """A certificate for the key of a request in PEM, of which nothing else is taken.

        ``ttl``: seconds, by default and at most what ``create`` was told; it ends with the intermediate at the latest. ``dns``: host
        names besides the one that stands for the ID. ``asked_by``: who it is recorded for; by default the user of this process.
        Raises ``IdentityError``, and records that, too.
        """
        with self._refusals_recorded(spiffe_id, asked_by):
            return self._certify(key_of_request(request), spiffe_id, ttl, dns, asked_by)

    def _certify(
        self, public_key: CertificatePublicKeyTypes, spiffe_id: str | SpiffeId, ttl: float | None, dns: Iterable[str], asked_by: str | None,
    ) -> Issued:
        with self._change(asked_by) as change:
            state = change.state
            workload = _workload(spiffe_id, state)
            names = all_dns_names(workload, dns)
            if str(workload) in state.barred:
                raise IdentityError(f"{workload} is revoked and gets no certificate: resilmesh ca revoke {change.where} {workload} --lift")
            issuer, life = state.active, _life(ttl, state)
            above = self.certificate(issuer.name)
            if change.now < above.not_valid_before_utc:
                raise IdentityError(f"it is {to_text(change.now)}, which is before the intermediate begins: look at this machine's clock")
            if above.not_valid_after_utc - change.now < datetime.timedelta(seconds=MIN_TTL):
                ends = to_text(above.not_valid_after_utc)
                alone = self.certificate(issuer.root).not_valid_after_utc > above.not_valid_after_utc
                how = " --intermediate" if alone else ", for its root does"
                raise IdentityError(f"the intermediate ends at {ends}: resilmesh ca rotate {change.where}{how}")
            made = ca_certificates.leaf(workload, names, public_key, above, change.key(issuer.name), change.now, life)
            change.mark_issued(issuer, made.not_valid_after_utc)
            change.record(
                action="issue", serial=f"{made.serial_number:x}", spiffe_id=str(workload), dns=names,
                not_before=to_text(made.not_valid_before_utc), not_after=to_text(made.not_valid_after_utc),
                key_sha256=key_digest(public_key), issuer=issuer.name, root=issuer.root,
            )
        return Issued((made, above), self._keys.bundle(state))

    @contextmanager
    def _refusals_recorded(self, spiffe_id: object, asked_by: str | None) -> Iterator[None]:
        try:
            yield
        except IdentityError as error:
            with self._change(asked_by) as change:
                change.record(action="refuse", spiffe_id=str(spiffe_id)[:_SHOWN], reason=str(error)[:_SHOWN])
            raise

    # ------------------------------------------------------------------------------------------ to revoke

    def revoke(self, what: str, *, asked_by: str | None = None) -> tuple[str, list[Entry]]:
        """Revoke a certificate by its serial number, or all that are good by SPIFFE ID; returns the ID, and which.

        They go into ``crl.pem``, and the ID gets no certificate until ``lift``. Raises ``IdentityError``.
        """
        with self._change(asked_by) as change:
            change.check_password()
            now = to_text(change.now)
            spiffe_id, named = self._named(what, change.state)
            found = [each for each in named if each.revoked is None and each.not_after >= now]
            change.state.barred.setdefault(spiffe_id, now)
            change.state.revoked += [Revoked(each.serial, each.issuer, now, each.not_after) for each in found]
            change.record(action="revoke", spiffe_id=spiffe_id, serials=[each.serial for each in found])
            change.commit(lists=True)
        return spiffe_id, found

    def lift(self, what: str, *, asked_by: str | None = None) -> str:
        """Let a SPIFFE ID, or that of a serial number, have certificates again; returns it. Those that are revoked stay so.

        Raises ``IdentityError`` where it is not barred.
        """
        with self._change(asked_by) as change:
            spiffe_id, _ = self._named(what, change.state)
            if change.state.barred.pop(spiffe_id, None) is None:
                raise IdentityError(f"{spiffe_id} is not revoked; resilmesh ca list {change.where} shows who is")
            change.record(action="lift", spiffe_id=spiffe_id)
            change.commit(lists=False)
        return spiffe_id

    def _named(self, what: str, state: State) -> tuple[str, list[Entry]]:
        """The SPIFFE ID that is meant, and its certificates that are meant."""
        if what.startswith(SCHEME):
            spiffe_id = str(_workload(what, state))
            return spiffe_id, [each for each in self._entries(state) if each.spiffe_id == spiffe_id]
        serial = what.lower().replace(":", "").removeprefix("0x").lstrip("0")
        found = [each for each in self._entries(state) if each.serial == serial]
        if not found:
            raise IdentityError(
                f"{what!r} is neither a SPIFFE ID nor the serial number of a certificate in {self._store.directory / 'audit.jsonl'}"
            )
        return found[0].spiffe_id, found

    # ------------------------------------------------------------------------------------------ to rotate

    def announce_root(self, *, asked_by: str | None = None) -> State:
        """First step of a rotation: make the next root, and have it trusted. Raises ``IdentityError``, as all of them."""
        return self._rotate(ca_rotation.announce, asked_by)

    def activate_root(self, *, force: bool = False, asked_by: str | None = None) -> State:
        """Second step: sign by the next root. Refused until everybody who has a certificate knows it, except by ``force``."""
        return self._rotate(ca_rotation.activate, asked_by, force=force)

    def retire_root(self, *, force: bool = False, asked_by: str | None = None) -> State:
        """Third step: trust the old root no more. Refused until the last certificate below it has ended, except by ``force``."""
        return self._rotate(ca_rotation.retire, asked_by, force=force)

    def renew_intermediate(self, *, asked_by: str | None = None) -> State:
        """Sign by a new intermediate below the same root."""
        return self._rotate(ca_rotation.renew_intermediate, asked_by)

    def _rotate(self, step: Callable[..., dict[str, Any]], asked_by: str | None, **how: bool) -> State:
        with self._change(asked_by) as change:
            change.check_password()
            change.record(**step(change, **how), **how)
            change.commit(lists=True)
            change.forget_keys()
        return change.state

    def _change(self, asked_by: str | None) -> AbstractContextManager[Change]:
        return Change.begin(self._store, self._keys, self._now(), asked_by)

    def _now(self) -> datetime.datetime:
        now = self._clock()
        if now.tzinfo is None:
            raise TypeError("the clock of an authority gives times with a zone: datetime.now(datetime.UTC)")
        return now.astimezone(datetime.UTC).replace(microsecond=0)


def _workload(spiffe_id: str | SpiffeId, state: State) -> SpiffeId:
    """Parsed anew even if it was: a tuple is made without ``parse``, too."""
    workload = SpiffeId.parse(str(spiffe_id) if isinstance(spiffe_id, SpiffeId) else spiffe_id)
    if workload.trust_domain != state.trust_domain:
        raise IdentityError(f"{workload} is not of the trust domain {state.trust_domain}, for which alone this authority vouches")
    if not workload.path:
        raise IdentityError(f"{workload} is the trust domain itself: a workload has a path, such as {workload}/ns/prod/sa/web")
    return workload


def _life(ttl: float | None, state: State) -> datetime.timedelta:
    seconds = state.default_ttl if ttl is None else ttl
    if not MIN_TTL <= seconds <= state.max_ttl:
        raise IdentityError(f"a certificate lives from {format_duration(MIN_TTL)} to {format_duration(state.max_ttl)}, not {seconds:g} s")
    return datetime.timedelta(seconds=seconds)

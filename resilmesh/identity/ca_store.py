"""The directory of an authority: its state, keys, certificates, and the record of what it did.

    ca.json         what is in force: roots and their phases, intermediates, who is barred, what is revoked (the commit point)
    root-1.crt      certificates; kept for ever, so that a reader needs no lock
    root-1.key      private keys, PKCS #8, mode 0600 from the moment they are made, encrypted if there is a password
    bundle.pem      the roots that are to be trusted        crl.pem   revocation lists of the intermediates
    audit.jsonl     one line for everything it did or refused
    lock            held for each change; any number of processes may use the directory

Every file but the record is written beside its place, synced and renamed. Keys and certificates come before the ``ca.json`` that
names them, so a crash leaves either the old authority or the new one, and at most a file that nothing names.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from resilmesh.identity.spiffe import IdentityError
from resilmesh.identity.svid import parse_certificates, parse_key

VERSION = 1


def to_text(at: datetime.datetime) -> str:
    """A time as the files have it: ``2026-11-24T07:00:00Z``."""
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def from_text(text: str) -> datetime.datetime:
    """The other way round."""
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)


@dataclasses.dataclass
class Root:
    """``phase``: ``announced`` (trusted, signs nothing yet), ``active``, ``old`` (still trusted), ``retired`` (trusted no more)."""

    name: str
    phase: str
    since: str
    #: Of an announced root: when everybody who has a certificate has got it together with a bundle that has this root.
    known_to_all: str | None = None


@dataclasses.dataclass
class Intermediate:
    """Signs leaves while it is active, and its revocation list for as long as one of its leaves is good."""

    name: str
    root: str
    active: bool
    #: No leaf below it ends later. Whole minutes, so that it is not written for each leaf.
    issued_until: str


@dataclasses.dataclass
class Revoked:
    """A certificate in a revocation list. ``until``: its end, after which the list does without it."""

    serial: str
    issuer: str
    since: str
    until: str


@dataclasses.dataclass
class State:
    """What ``ca.json`` holds. Times of life are seconds."""

    trust_domain: str
    encrypted: bool
    root_life: float
    intermediate_life: float
    default_ttl: float
    max_ttl: float
    roots: list[Root]
    intermediates: list[Intermediate]
    revoked: list[Revoked] = dataclasses.field(default_factory=list)
    #: SPIFFE IDs that get no certificate, and since when.
    barred: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Of the revocation lists: the number of the last one, and when the next one is due.
    crl_number: int = 0
    crl_due: str = ""
    version: int = VERSION

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what is not ours."""
        plain = json.loads(text)
        if plain.get("version") != VERSION:
            raise ValueError(f"it has the version {plain.get('version')!r}, and this library knows {VERSION}")
        plain["roots"] = [Root(**each) for each in plain["roots"]]
        plain["intermediates"] = [Intermediate(**each) for each in plain["intermediates"]]
        plain["revoked"] = [Revoked(**each) for each in plain["revoked"]]
        state = cls(**plain)
        if sum(each.active for each in state.intermediates) != 1 or sum(each.phase == "active" for each in state.roots) != 1:
            raise ValueError("not exactly one root and one intermediate are active")
        return state

    def to_json(self) -> bytes:
        """For people too."""
        return json.dumps(dataclasses.asdict(self), indent=2).encode() + b"\n"

    def root_in(self, phase: str) -> Root | None:
        """The one root in a phase that only one can be in."""
        return next((each for each in self.roots if each.phase == phase), None)

    @property
    def trusted(self) -> list[Root]:
        """The roots of the bundle."""
        return [each for each in self.roots if each.phase != "retired"]

    @property
    def active(self) -> Intermediate:
        """What signs leaves."""
        return next(each for each in self.intermediates if each.active)

    def next_name(self, kind: str) -> str:
        """``root-2`` after ``root-1``."""
        return f"{kind}-{1 + len(self.roots if kind == 'root' else self.intermediates)}"


class Store:
    """One directory. Keeps nothing in memory, so any number of threads and processes may use it."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).absolute()

    # ------------------------------------------------------------------------------------------- state

    @classmethod
    def make(cls, directory: str | os.PathLike[str]) -> Self:
        """Of a new directory of mode 0700, or an empty one. Raises ``IdentityError`` where there is something in it."""
        store = cls(directory)
        try:
            store.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = {each.name for each in store.directory.iterdir()}
            if "ca.json" in found:
                raise IdentityError(f"{store.directory} has an authority already; open it, or give another directory")
            # What an `init` that was killed has left is overwritten; once it has got as far as `bundle.pem`, there was an authority.
            ours = ("root-1.", "intermediate-1.", "lock", "crl.pem", "audit.jsonl", "ca.json.new")
            foreign = sorted(each for each in found if not each.removeprefix(".").startswith(ours))
            if foreign:
                raise IdentityError(f"{store.directory} is not empty (it has {foreign[0]}); give a directory for the authority alone")
            store.directory.chmod(0o700)
        except OSError as error:
            raise IdentityError(f"cannot make the authority's directory {store.directory}: {error.strerror}") from None
        return store

    def load(self) -> State:
        """What is in force. Needs no lock: the file is replaced as a whole. Raises ``IdentityError``."""
        path = self.directory / "ca.json"
        try:
            return State.from_json(path.read_bytes())
        except FileNotFoundError:
            raise IdentityError(f"there is no authority in {self.directory}; make one: resilmesh ca init") from None
        except OSError as error:
            raise IdentityError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IdentityError(f"{path} is not the state of an authority: {error}") from None

    def save(self, state: State) -> None:
        """The commit point of every change."""
        self.write("ca.json", state.to_json())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes anything meanwhile: no thread and no process on this machine."""
        # A file of its own, which is never replaced. Each holder opens it anew, and so `flock` is between threads, too.
        number = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)

    def write(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Replace a file as a whole, under the lock. It has its mode from the beginning; what is in it is on the disk afterwards."""
        path, beside = self.directory / name, self.directory / f".{name}.new"
        beside.unlink(missing_ok=True)  # of somebody who was killed
        number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(number)
        beside.rename(path)
        sync_directory(self.directory)

    # --------------------------------------------------------------------------- keys and certificates

    def certificate(self, name: str) -> x509.Certificate:
        """Of a root or an intermediate. Raises ``IdentityError``."""
        path = self.directory / f"{name}.crt"
        try:
            return parse_certificates(path.read_bytes(), str(path))[0]
        except OSError as error:
            raise IdentityError(f"cannot read {path}: {error.strerror}") from None

    def key(self, name: str, password: bytes | None) -> ec.EllipticCurvePrivateKey:
        """Raises ``IdentityError``, also where others may read it."""
        path = self.directory / f"{name}.key"
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                content = file.read()
        except OSError as error:
            raise IdentityError(f"cannot read {path}: {error.strerror}") from None
        if mode & 0o077:
            raise IdentityError(f"{path} has the mode {mode:04o}, so others may have read it: replace it (rotate), or chmod 600 {path}")
        try:
            key = parse_key(content, password)
        except IdentityError as error:
            raise IdentityError(f"{path}: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityError(f"{path} is no key of this authority")
        return key

    def add(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, password: bytes | None) -> None:
        """Write the key and certificate of a new root or intermediate."""
        encryption = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
        content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        self.write(f"{name}.key", content, 0o600)
        self.write(f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))

    def has_key(self, name: str) -> bool:
        """Whether it was not forgotten."""
        return (self.directory / f"{name}.key").exists()

    def forget_key(self, name: str) -> None:
        """A key that nobody needs any more cannot be stolen."""
        (self.directory / f"{name}.key").unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------ record

    def record(self, line: dict[str, Any]) -> None:
        """Add one line to ``audit.jsonl``, under the lock; on the disk when this returns."""
        path = self.directory / "audit.jsonl"
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(number).st_size
            # The end of a line may be missing after a power cut.
            torn = size > 0 and os.pread(number, 1, size - 1) != b"\n"
            content = b"\n" * torn + json.dumps(line).encode() + b"\n"
            if os.write(number, content) != len(content):
                raise OSError(f"{path} took a part of a line only; is the disk full?")
            os.fsync(number)
        finally:
            os.close(number)

    def records(self) -> Iterator[dict[str, Any]]:
        """Every line, the oldest first. What a power cut has torn is left out."""
        path = self.directory / "audit.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            for line in file:
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    yield found


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk, too."""
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)

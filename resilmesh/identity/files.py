"""An identity from PEM files that somebody else keeps fresh: cert-manager, SPIRE's helper, ``resilmesh ca issue --renew``, a script.

The files are looked at every second by stat and read when one changed. What is read is used only as a whole: the key must be the
certificate's and a bundle must vouch for it. A half that was written before the other is refused, and read again at the next look.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

from resilmesh.identity.source import Source
from resilmesh.identity.spiffe import IdentityError, parse_trust_domain
from resilmesh.policy.identity_files import FEDERATED, FILE_NAMES
from resilmesh.ticker import Ticker

if TYPE_CHECKING:
    from resilmesh.identity.svid import Identity

log = logging.getLogger("resilmesh.identity")
Path = str | os.PathLike[str]


class FileSource(Source):
    """Reads ``certificate`` (the leaf first), ``key`` and ``bundle``, and one bundle for each federated trust domain.

    ``interval``: seconds between two looks, 1 by default; ``None``: only ``reload`` looks. ``password``: of the key, or what gives
    it. Raises ``IdentityError`` where the files cannot be used now.
    """

    def __init__(
        self, certificate: Path, key: Path, bundle: Path, *, federated: Mapping[str, Path] | None = None,
        password: bytes | Callable[[], bytes] | None = None, interval: float | None = 1.0, now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        if interval is not None and not (isinstance(interval, int | float) and 0 < interval <= threading.TIMEOUT_MAX):
            raise ValueError(f"interval is a number of seconds above 0, or None for never, not {interval!r}")
        self._certificate, self._key, self._bundle = (os.path.abspath(each) for each in (certificate, key, bundle))
        self._federated = {parse_trust_domain(domain): os.path.abspath(path) for domain, path in (federated or {}).items()}
        self._directory: str | None = None
        self._password = password
        self._now = now
        self._seen: object = None
        self._looking = threading.Lock()
        self._ticker = Ticker(self.reload, interval, thread="resilmesh-identity", task="looking at the identity's files", log=log)
        self.reload()
        self._ticker.start()

    @classmethod
    def of_directory(
        cls, directory: Path, *, password: bytes | Callable[[], bytes] | None = None, interval: float | None = 1.0,
        now: Callable[[], float] = time.time,
    ) -> Self:
        """Of a directory whose files have the names that one of the usual tools gives them. Raises ``IdentityError``."""
        for names in FILE_NAMES:
            paths = [os.path.join(directory, name) for name in names]
            if all(map(os.path.exists, paths)):
                return cls(*paths, federated=_federated(directory), password=password, interval=interval, now=now)
        if not os.path.isdir(directory):
            raise IdentityError(f"there is no directory {os.fspath(directory)!r} with a certificate, a key and a bundle")
        wanted = "; or ".join(", ".join(names) for names in FILE_NAMES)
        raise IdentityError(f"{os.fspath(directory)!r} has no certificate, key and bundle: {wanted}")

    def reload(self) -> bool:
        """Look at the files now; whether another identity was put in force.

        Raises ``IdentityError`` if there never was an identity and there is none now. Otherwise what cannot be used is refused, and the
        old one stays.
        """
        with self._looking:
            now = self._now()
            try:
                stat = self._stat()
                if stat == self._seen:
                    return False
                identity = self._read()
                if self._stat() != stat:
                    return False  # written while it was read: at the next look
                before = self._identity
                self.put(identity, now)
            except (IdentityError, OSError) as error:
                problem = error if isinstance(error, IdentityError) else IdentityError(f"{error.filename}: {error.strerror}")
                if self._identity is None:
                    raise problem from None
                self.refuse(problem)
                return False
            finally:
                self.look(now)
            self._seen = stat
            return before is not self._identity

    def close(self) -> None:
        """No further look."""
        self._ticker.stop()

    def _paths(self) -> list[str]:
        return [self._certificate, self._key, self._bundle, *self._federated.values()]

    def _stat(self) -> list[tuple[int, ...]]:
        found = [os.stat(path) for path in self._paths()]
        return [(each.st_ctime_ns, each.st_mtime_ns, each.st_size, each.st_ino, each.st_dev) for each in found]

    def _read(self) -> Identity:
        from resilmesh.identity.svid import Identity, Svid, TrustBundle

        certificate, key, bundle, *federated = [_content(path) for path in self._paths()]
        password = self._password() if callable(self._password) else self._password
        try:
            svid = Svid.from_pem(certificate, key, password=password)
            own = TrustBundle.from_pem(svid.id.trust_domain, bundle)
            others = [TrustBundle.from_pem(domain, text) for domain, text in zip(self._federated, federated, strict=True)]
            return Identity.of(svid, [own, *others]).proven(self._now())
        except IdentityError as error:
            raise IdentityError(f"{self._certificate}: {error}") from None

    def after_fork(self) -> None:
        """The thread stayed with the parent."""
        super().after_fork()
        self._looking = threading.Lock()
        self._ticker.after_fork()


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _federated(directory: Path) -> dict[str, str]:
    found = os.path.join(directory, FEDERATED)
    if not os.path.isdir(found):
        return {}
    return {name.removesuffix(".pem"): os.path.join(found, name) for name in sorted(os.listdir(found)) if name.endswith(".pem")}

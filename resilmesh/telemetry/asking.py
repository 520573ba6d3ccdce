"""The stats document of a running process, or one that was kept: read, and looked at before anybody trusts it."""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
from typing import Any

from resilmesh.errors import ResilmeshError

#: Of the documents that are understood.
FORMAT = "resilmesh/stats/v1"
#: Where a process is asked when nothing else is said.
DEFAULT_ADDRESS = "127.0.0.1:9901"


class NoDocument(ResilmeshError):
    """There is none, or none that can be used. The text says why, and what to do."""


class Unanswered(NoDocument):
    """Nobody answered. A moment later somebody may."""


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def address(given: str | None) -> str:
    """Whom to ask: what was given, or else ``RESILMESH_ADMIN``, or else 127.0.0.1:9901."""
    return given or os.environ.get("RESILMESH_ADMIN") or DEFAULT_ADDRESS


def ask(where: str, timeout: float = 5.0) -> dict[str, Any]:
    """The document of the process that listens at ``HOST:PORT`` or ``unix:/PATH``. Raises ``NoDocument``."""
    from resilmesh.telemetry.admin_server import parse_address

    try:
        parsed = parse_address(where)
    except ValueError as error:
        raise NoDocument(str(error)) from None
    connection = _Unix(parsed, timeout) if isinstance(parsed, str) else http.client.HTTPConnection(*parsed, timeout=timeout)
    try:
        connection.request("GET", "/stats?format=json")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unanswered(
            f"nobody answers at {where} ({error or type(error).__name__}): start the program with RESILMESH_ADMIN={where},"
            " or call mesh.serve_admin()",
        ) from None
    finally:
        connection.close()
    if response.status != 200:
        raise NoDocument(f"{where} answered {response.status} to GET /stats: it is not resilmesh's admin server; name its address")
    return parse(body, where)


def kept(path: str) -> dict[str, Any]:
    """The document in a file, ``-`` for stdin. Raises ``NoDocument``."""
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            return parse(file.read(), path)
    except (OSError, ValueError) as error:
        raise NoDocument(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def parse(text: bytes, source: str) -> dict[str, Any]:
    """A document of the format that is understood. Raises ``NoDocument``."""
    remedy = "take what GET /stats?format=json of the admin server gives, or the file that RESILMESH_PROFILE names"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoDocument(f"{source} is not JSON ({error}): {remedy}") from None
    if not isinstance(document, dict) or "format" not in document:
        raise NoDocument(f"{source} is JSON, but no profile: it has no 'format'; {remedy}")
    if document["format"] != FORMAT:
        raise NoDocument(
            f"{source} has the format {document['format']!r}, and this version reads {FORMAT!r}: use the resilmesh that wrote it",
        )
    if not isinstance(document.get("snapshot"), dict):
        raise NoDocument(f"{source} has no 'snapshot': {remedy}")
    seconds = document.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        raise NoDocument(f"{source}: 'seconds' is not a number of seconds: {remedy}")
    return document

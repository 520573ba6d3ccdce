"""Request bodies: which can be sent again, and how they are rewound.

    stream                                              sent again
    bytes, text, JSON, form                             yes
    multipart of values, bytes and seekable files       yes; httpx seeks to the start of each file by itself
    a seekable file                                     yes, from where it stood at first
    a list, or another iterable that starts anew        yes
    a generator, a pipe, a stream class of one's own    no: unless nothing of it was read before the attempt failed
"""

from __future__ import annotations

from typing import Any


class RequestBody:
    """The body of one request over all of its attempts."""

    __slots__ = ("_file", "_start", "_stream", "replayable")

    def __init__(self, stream: Any) -> None:
        self._file: Any = None
        self._start = 0
        self._stream = stream
        self.replayable = self._examine(stream)

    def _examine(self, stream: Any) -> bool:
        fields = getattr(stream, "fields", None)
        if fields is not None:
            return all(_is_value(each) or _is_seekable(each.file) for each in fields)
        # httpx's streams over an iterable keep it here; a class of the user's own says nothing about itself.
        if type(stream).__name__ not in ("IteratorByteStream", "AsyncIteratorByteStream"):
            return False
        source = stream._stream
        if hasattr(source, "read"):
            if not _is_seekable(source):
                return False
            self._file, self._start = source, source.tell()
            return True
        return not hasattr(source, "__next__") and not hasattr(source, "__anext__")

    @property
    def untouched(self) -> bool:
        """Whether nothing was taken from the stream yet, so that even a generator can still be sent."""
        return getattr(self._stream, "_is_stream_consumed", True) is False

    @property
    def runs_code(self) -> bool:
        """Whether reading it runs code of the user, which no socket's time-out ends."""
        return hasattr(self._stream, "_stream") and not isinstance(self._stream._stream, bytes)

    def rewind(self) -> None:
        """Before an attempt after the first."""
        if self._file is not None:
            self._file.seek(self._start)


def _is_value(field: Any) -> bool:
    return not hasattr(field, "file") or isinstance(field.file, str | bytes)


def _is_seekable(file: Any) -> bool:
    try:
        return bool(file.seekable())
    except (AttributeError, ValueError):
        return False

"""From a policy's text to the model: ``load_text`` and ``load_file``.

Both report every mistake at once, each with its place, or raise nothing. They judge the form only; whether
the parts of a policy fit together is for ``resilmesh.policy.check``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilmesh.errors import PolicyError
from resilmesh.policy import codes, document
from resilmesh.policy.codes import Diagnostic
from resilmesh.policy.report import first_of, in_order

if TYPE_CHECKING:
    from resilmesh.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy and where each of its values was written."""

    policy: Policy
    source: str
    places: document.Places
    #: ``resilmesh.policy.check`` has found no error in it.
    checked: bool = False


def load_file(path: str | os.PathLike[str]) -> Loaded:
    """Load a YAML or JSON file. Raises ``PolicyError`` with every mistake, also when the file cannot be read."""
    source = os.fspath(path)
    try:
        with open(path, "rb") as file:
            text = file.read(document.MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise PolicyError([Diagnostic(source, 0, 0, codes.UNREADABLE.code, f"cannot read the policy: {reason}")]) from None
    return load_text(text, source)


def load_text(text: str | bytes, source: str = "<text>") -> Loaded:
    """Load a policy from YAML or JSON. ``source`` is the file's name in diagnostics.

    Raises ``PolicyError`` with every mistake, in the order of the text.
    """
    if not isinstance(text, str | bytes):
        raise TypeError(f"a policy's text is str or bytes, not {type(text).__name__}")
    # pydantic and the model cost 100 ms to import, which a program that loads no policy does not pay.
    from pydantic import ValidationError

    from resilmesh.policy.mistakes import diagnose
    from resilmesh.policy.model import Policy

    read = document.read(text, source)
    mistakes = list(read.mistakes)
    try:
        policy = Policy.model_validate(read.data, by_alias=True, by_name=False)
    except ValidationError as error:
        mistakes += diagnose(error, read.places, source)
    else:
        if not mistakes:
            return Loaded(policy, source, read.places)
    raise PolicyError(first_of(in_order(mistakes)))

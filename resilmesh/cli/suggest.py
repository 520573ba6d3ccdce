"""``resilmesh suggest PROFILE``: a commented policy to begin with, from what a program under OBSERVE saw."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from resilmesh.errors import PolicyError

if TYPE_CHECKING:
    from resilmesh.suggest.profile import Profile


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words."""
    parser.add_argument(
        "profile", metavar="PROFILE", nargs="?",
        help="a file that RESILMESH_PROFILE named (- for stdin), or the address of a running program's admin server, HOST:PORT or"
        " unix:/PATH (default: RESILMESH_ADMIN, else 127.0.0.1:9901)",
    )
    parser.add_argument("--policy", metavar="FILE", help="the policy that the profile was observed under, which is kept and added to")
    parser.add_argument("--json", action="store_true", help="print one JSON object: each value with its reason, and the policy")


def run(options: argparse.Namespace) -> int:
    """Print the policy. 0: fine. 2: the profile or the policy cannot be used."""
    from resilmesh.suggest.write import data, text
    from resilmesh.telemetry.asking import NoDocument

    try:
        source, profile = _profile(options.profile)
        policy = None if options.policy is None else _policy(options.policy)
    except (NoDocument, PolicyError) as error:
        print(error, file=sys.stderr)
        return 2
    suggestion = text(profile, policy, source, options.policy)
    if options.json:
        print(json.dumps({
            "source": source, "seconds": profile.seconds, "workers": profile.workers,
            "values": data(profile, policy), "policy": suggestion,
        }, indent=2))
    else:
        print(suggestion, end="")
    return 0


def _profile(given: str | None) -> tuple[str, Profile]:
    from resilmesh.suggest.profile import read
    from resilmesh.telemetry.asking import address, ask, kept

    if given is not None and (given == "-" or _is_file(given)):
        source, document = given, kept(given)
    else:
        source = address(given)
        document = ask(source)
    return source, read(document, source)


def _is_file(given: str) -> bool:
    """Whether a file is meant, there or not: whatever is neither ``HOST:PORT`` nor a socket."""
    if given.startswith("unix:"):
        return False
    if os.path.exists(given):
        return os.path.isfile(given)
    return not given.rpartition(":")[2].isdigit()


def _policy(path: str) -> dict[str, Any]:
    """A policy that is good, as it is written. Raises ``PolicyError``."""
    from resilmesh.policy.check import check
    from resilmesh.policy.document import read
    from resilmesh.policy.load import load_file

    mistakes = [each for each in check(load_file(path)) if each.severity == "error"]
    if mistakes:
        raise PolicyError(mistakes)
    with open(path, "rb") as file:
        found: dict[str, Any] = read(file.read(), path).data
    return found

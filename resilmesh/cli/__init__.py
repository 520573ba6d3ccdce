"""``resilmesh VERB``: one file a verb, each with ``add(subparsers)`` and ``run(arguments) -> exit status``.

Nothing but the chosen verb is imported, so that ``resilmesh check`` starts fast.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

#: Verb, its module below ``resilmesh.cli``, and its line in ``--help``.
VERBS: tuple[tuple[str, str, str], ...] = (
    ("check", "check", "find every mistake in policy files"),
    ("explain", "explain", "show the effective plan of a request and where each value was written"),
    ("authz", "authz", "tell whether a request would be let in, and by which rule"),
    ("schema", "schema", "print the policy's JSON Schema"),
    ("export", "export", "translate a policy for a real Envoy"),
    ("ca", "ca", "run a certificate authority for workloads: make, renew, rotate, revoke"),
    ("serve", "serve", "serve an ASGI application with mutual TLS, authorization and limits by a policy"),
    ("top", "top", "watch a running program: rates, errors, latencies, circuits, endpoints"),
    ("suggest", "suggest", "suggest a policy, from what a program saw under OBSERVE"),
    ("collector", "collector", "take OpenTelemetry spans and print each trace as a tree"),
    ("compare", "compare", "run the same traffic through the library and a real Envoy, side by side"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 fine, 1 found something, 2 wrong words, 130 interrupted, 141 nobody reads what it prints."""
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `resilmesh ... | head`: the reader is gone, which needs no word. Not 0: `check` may have found something.
        _silence()
        return 141
    except OSError as error:
        # Such as a full disk below the output.
        _silence()
        print(f"resilmesh: {error}", file=sys.stderr)
        return 1


def _silence() -> None:
    """Leave the interpreter nothing to flush, and to fail at, when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="resilmesh", description="A service mesh's traffic policy inside the Python process.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for verb, module, line in VERBS:
        subparser = verbs.add_parser(verb, help=line, description=line[0].upper() + line[1:] + ".")
        if verb == chosen:
            loaded = importlib.import_module(f"resilmesh.cli.{module}")
            loaded.add(subparser)
            subparser.set_defaults(run=loaded.run)
    options = parser.parse_args(arguments)
    if options.version:
        from importlib.metadata import version

        print(version("resilmesh"))
        return 0
    if options.verb is None:
        parser.print_help()
        return 2
    return int(options.run(options))

"""``resilmesh export envoy FILE``: the policy as the bootstrap of a real Envoy, beside a caller or (``--inbound``) before a service.

Differences between library and Envoy go to stderr as ``file:line: block: fidelity: message``.
Exit status: 0 fine, 1 the policy is wrong or ``--strict`` found a difference, 2 wrong words.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilmesh.envoy.notes import Note
    from resilmesh.policy.load import Loaded


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's words."""
    parser.add_argument("target", choices=["envoy"], help="what to translate for")
    parser.add_argument("file", metavar="FILE", help="the policy")
    parser.add_argument(
        "--listen", type=_address, default="127.0.0.1:15001", metavar="HOST:PORT", help="where Envoy takes calls (%(default)s)",
    )
    parser.add_argument(
        "--admin", type=_address, default="127.0.0.1:15000", metavar="HOST:PORT", help="Envoy's admin interface (%(default)s)",
    )
    parser.add_argument(
        "--identity", metavar="DIR",
        help="where Envoy finds this workload's certificate, key and bundle (default: the policy's mesh.identity, else /run/identity)",
    )
    parser.add_argument(
        "--inbound", type=_address, metavar="HOST:PORT",
        help="make the Envoy before a service instead of the one beside a caller: `inbound` of the policy, for the service at HOST:PORT",
    )
    parser.add_argument("--http2", action="store_true", help="with --inbound: the service speaks HTTP/2, as gRPC does")
    parser.add_argument(
        "--secrets", metavar="DIR",
        help="write there where the certificates are (SDS), so that Envoy reads them anew whenever they are renewed; DIR must stay",
    )
    parser.add_argument(
        "--tracing", type=_address, metavar="HOST:PORT", help="have Envoy send its spans there, as OTLP over gRPC (such as 127.0.0.1:4317)",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write there, not to stdout; .json as JSON, anything else as YAML")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument("--strict", action="store_true", help="refuse a policy of which Envoy does anything otherwise than the library")


def run(options: argparse.Namespace) -> int:
    """Translate one file."""
    from resilmesh.errors import PolicyError
    from resilmesh.policy.check import check
    from resilmesh.policy.load import load_file

    if options.listen == options.admin and options.listen[1] != 0:
        print(f"--listen and --admin are the same, {options.listen[0]}:{options.listen[1]}", file=sys.stderr)
        return 2
    if options.http2 and options.inbound is None:
        print("--http2 goes with --inbound: of the services that are called, `protocol` says it", file=sys.stderr)
        return 2
    if options.tracing is not None and options.inbound is not None:
        print("--tracing is of the Envoy beside a caller: it does not go with --inbound", file=sys.stderr)
        return 2
    try:
        loaded = load_file(options.file)
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 1
    found = check(loaded)
    for diagnostic in found:
        print(diagnostic, file=sys.stderr)
    if any(diagnostic.severity == "error" for diagnostic in found):
        return 1
    bootstrap, notes = _translated(options, loaded)
    _show(notes, loaded)
    if options.strict and notes:
        count = len(notes)
        print(f"{loaded.source}: refused: {count} difference{'s' if count > 1 else ''}, and --strict allows none", file=sys.stderr)
        return 1
    try:
        if options.secrets is not None:
            bootstrap = _with_secrets(bootstrap, options.secrets)
        text = _json(bootstrap) if _wants_json(options) else _yaml(bootstrap)
        if options.output is None:
            sys.stdout.write(text)
        else:
            Path(options.output).write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _translated(options: argparse.Namespace, loaded: Loaded) -> tuple[dict[str, Any], list[Note]]:
    from resilmesh.envoy.ingress import ingress
    from resilmesh.envoy.notes import notes_on_inbound
    from resilmesh.envoy.tls import IdentityFiles
    from resilmesh.envoy.translate import translate

    policy = loaded.policy
    identity = None if options.identity is None else IdentityFiles.in_directory(options.identity)
    if options.inbound is None:
        made = translate(policy, listen=options.listen, admin=options.admin, identity=identity, collector=options.tracing)
        return made.bootstrap, made.notes
    bootstrap = ingress(
        policy, options.inbound, listen=options.listen, admin=options.admin, identity=identity, http2=options.http2)
    return bootstrap, notes_on_inbound(policy)


def _with_secrets(bootstrap: dict[str, Any], folder: str) -> dict[str, Any]:
    from resilmesh.envoy.sds import rotating

    Path(folder).mkdir(parents=True, exist_ok=True)
    return rotating(bootstrap, folder)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _show(notes: Sequence[Note], loaded: Loaded) -> None:
    places = sorted((loaded.places.line_column(note.path)[0], number) for number, note in enumerate(notes))
    for line, number in places:
        note = notes[number]
        print(f"{loaded.source}:{line}: {note.block}: {note.fidelity}: {note.message}", file=sys.stderr)


def _wants_json(options: argparse.Namespace) -> bool:
    return options.json or Path(options.output or "").suffix == ".json"


def _json(bootstrap: dict[str, Any]) -> str:
    return json.dumps(bootstrap, indent=2) + "\n"


def _yaml(bootstrap: dict[str, Any]) -> str:
    import yaml

    class Plain(yaml.SafeDumper):
        """Writes what is used twice twice: an alias is harder to read than the few lines it saves."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(bootstrap, Dumper=Plain, sort_keys=False, width=120)

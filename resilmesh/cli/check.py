"""``resilmesh check FILE...``: every mistake and danger of policy files."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from resilmesh.errors import PolicyError

if TYPE_CHECKING:
    from resilmesh.policy.codes import Diagnostic


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="a policy, YAML or JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")


def run(options: argparse.Namespace) -> int:
    """Print every diagnostic as ``file:line:column: CODE message (hint)``. 1: there are errors (``--strict``: or warnings)."""
    found = [each for file in options.files for each in _diagnostics(file)]
    errors = sum(each.severity == "error" for each in found)
    warnings = len(found) - errors
    if options.json:
        rows = [dataclasses.asdict(each) for each in found]
        print(json.dumps({"files": options.files, "errors": errors, "warnings": warnings, "diagnostics": rows}, indent=2))
    else:
        for each in found:
            print(each)
        print(f"{_counted(len(options.files), 'file')}: {_counted(errors, 'error')}, {_counted(warnings, 'warning')}")
    return 1 if errors or (warnings and options.strict) else 0


def _diagnostics(file: str) -> list[Diagnostic]:
    from resilmesh.policy.check import check
    from resilmesh.policy.load import load_file

    try:
        return check(load_file(file))
    except PolicyError as error:
        return list(error.diagnostics)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"

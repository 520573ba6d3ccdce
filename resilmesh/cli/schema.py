"""``resilmesh schema``: the policy's JSON Schema, and the reference pages made from the same model."""

from __future__ import annotations

import argparse
import json


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--reference", action="store_true", help="print the reference of the policy file, in Markdown")
    what.add_argument("--diagnostics", action="store_true", help="print the reference of the diagnostics, in Markdown")


def run(options: argparse.Namespace) -> int:
    """Print one of the three."""
    from resilmesh.policy.reference import diagnostics_reference, policy_reference
    from resilmesh.policy.schema import json_schema

    if options.reference:
        print(policy_reference(), end="")
    elif options.diagnostics:
        print(diagnostics_reference(), end="")
    else:
        print(json.dumps(json_schema(), indent=2))
    return 0

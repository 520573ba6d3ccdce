"""``resilmesh compare``: the same policies and the same calls, bare, through the library and through a real Envoy."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from resilmesh.compare import report
from resilmesh.compare.planes import CLIENTS, PLANES, SIDECAR, client_version, envoy_version, missing
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import DEFAULT_ROUNDS, Result, Settings, compare, expected_seconds, steps
from resilmesh.compare.scenarios import SCENARIOS
from resilmesh.errors import ResilmeshError


def add(parser: argparse.ArgumentParser) -> None:
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--client", choices=CLIENTS, default="httpx", help="what makes the calls, in every plane (default: httpx)")
    parser.add_argument("--only", metavar="NAME", action="append", choices=names, help=f"one scenario, repeatable: {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals, failures and choices (default: 1)")
    parser.add_argument(
        "--rounds", type=_at_least_one, default=DEFAULT_ROUNDS, help=f"over all planes for the costs (default: {DEFAULT_ROUNDS})")
    parser.add_argument("--json", metavar="FILE", type=_writable, help="write the whole report to FILE too")


def _at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _writable(text: str) -> Path:
    """A file that can be written: better known now than in two minutes."""
    try:
        Path(text).touch()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def run(options: argparse.Namespace) -> int:
    """Compare, print as it goes, write the JSON at the end. 0 when it ran, whatever the planes did; 2 when it could not."""
    if client_version(options.client) is None:
        library = options.client.partition("-")[0]
        print(f"resilmesh compare: {library} is not installed: pip install 'resilmesh[{library}]'", file=sys.stderr)
        return 2
    lacking = missing()
    settings = Settings(
        scenarios=[scenario for scenario in SCENARIOS if options.only is None or scenario.name in options.only],
        planes=[plane for plane in PLANES if plane not in lacking], client=options.client, seed=options.seed, rounds=options.rounds,
    )
    envoy = None if SIDECAR in lacking else envoy_version()
    print(report.heading(settings, lacking, envoy), flush=True)
    progress = Progress(sys.stderr, steps(settings), expected_seconds(settings))
    results: list[Result] = []
    try:
        for result in compare(settings, progress):
            results.append(result)
            progress.clear()
            print("\n" + report.scenario(result), flush=True)
    except ResilmeshError as error:
        print(f"resilmesh compare: {error}", file=sys.stderr)
        return 2
    finally:
        progress.clear()
    for result in results:
        if result.costs is not None:
            print("\n" + report.cost(result, settings))
    print(f"\n{report.notes_on_method()}\n\n{report.in_short(results, lacking)}")
    if options.json is not None:
        told = report.as_json(settings, results, lacking, envoy)
        options.json.write_text(json.dumps(told, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return 0

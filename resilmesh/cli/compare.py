"""``resilmesh compare``: the same policies and the same calls, bare, through the library and through a real Envoy."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from resilmesh.compare import machine, report
from resilmesh.compare.markdown import page
from resilmesh.compare.planes import CLIENTS, PLANES, SIDECAR, client_version, envoy_version, missing
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import BEHAVIOUR_ROUNDS, COST_ROUNDS, Result, Settings, compare, expected_seconds, steps
from resilmesh.compare.scenarios import SCENARIOS
from resilmesh.errors import ResilmeshError

#: What the protocols are refused with that no scenario speaks yet.
_NOT_YET = {
    "http2": "the services of the test bed speak HTTP/1.1 only, so that HTTP/2 would be measured on half of the way",
    "grpc": "gRPC calls are not governed by this version, so there is nothing to compare",
}


def add(parser: argparse.ArgumentParser) -> None:
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--client", choices=CLIENTS, default="httpx", help="what makes the calls, in every plane (default: httpx)")
    parser.add_argument("--protocol", choices=("http", *_NOT_YET), default="http", help="of the calls (default: http, which is HTTP/1.1)")
    parser.add_argument(
        "--only", metavar="NAMES", action="append", type=_some_of(names),
        help=f"these scenarios, with commas or repeated: {', '.join(names)}")
    parser.add_argument(
        "--planes", metavar="NAMES", action="append", type=_some_of(PLANES), help=f"these planes, likewise: {', '.join(PLANES)}")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals, failures and choices (default: 1)")
    parser.add_argument(
        "--rounds", type=_at_least_one,
        help=f"how often each scenario goes over all planes (default: {COST_ROUNDS} for the costs, {BEHAVIOUR_ROUNDS} for the others)")
    parser.add_argument("--json", metavar="FILE", type=_writable, help="write the whole report to FILE too")
    parser.add_argument("--markdown", metavar="FILE", type=_writable, help="write it as a page for people, too")


def _some_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in names:
                raise argparse.ArgumentTypeError(f"there is no {name!r}; there are {', '.join(names)}")
        return chosen

    return parse


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
    """Compare, print as it goes, write the files at the end. 0 when it ran, whatever the planes did; 2 when it could not."""
    if client_version(options.client) is None:
        library = options.client.partition("-")[0]
        return _refuse(f"{library} is not installed: pip install 'resilmesh[{library}]'")
    if options.protocol in _NOT_YET:
        return _refuse(f"--protocol {options.protocol}: {_NOT_YET[options.protocol]}")
    lacking = {plane: remedy for plane, remedy in missing().items() if _wanted(plane, options.planes)}
    settings = Settings(
        scenarios=[scenario for scenario in SCENARIOS if _wanted(scenario.name, options.only)],
        planes=[plane for plane in PLANES if plane not in lacking and _wanted(plane, options.planes)],
        client=options.client, seed=options.seed, rounds=options.rounds, command=shlex.join(["resilmesh", *sys.argv[1:]]),
    )
    if not settings.planes:
        return _refuse("; ".join(f"{plane}: {remedy}" for plane, remedy in lacking.items()))
    envoy = None if SIDECAR in missing() else envoy_version()
    here = machine.describe()
    started, began = datetime.now(UTC), time.monotonic()
    print(report.heading(settings, lacking, envoy, here), flush=True)
    try:
        results = _compare(settings)
    except ResilmeshError as error:
        return _refuse(str(error))
    for result in results:
        if result.costs is not None:
            print("\n" + report.cost(result))
    print(f"\n{report.notes_on_method()}\n\n{report.in_short(results, lacking)}")
    told = report.as_json(
        settings, results, lacking, envoy, here, started.strftime("%Y-%m-%dT%H:%M:%SZ"), time.monotonic() - began)
    if options.json is not None:
        options.json.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(page(told, results), encoding="utf-8")
    return 0


def _compare(settings: Settings) -> list[Result]:
    """Run everything, each scenario's table printed as soon as it is there."""
    progress = Progress(sys.stderr, steps(settings), expected_seconds(settings))
    results: list[Result] = []
    try:
        for result in compare(settings, progress):
            results.append(result)
            progress.clear()
            print("\n" + report.scenario(result), flush=True)
    finally:
        progress.clear()
    return results


def _wanted(name: str, chosen: list[list[str]] | None) -> bool:
    return chosen is None or any(name in each for each in chosen)


def _refuse(why: str) -> int:
    print(f"resilmesh compare: {why}", file=sys.stderr)
    return 2

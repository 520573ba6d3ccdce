"""``resilmesh compare``: the same policies and the same calls, bare, through the library and through a real Envoy."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resilmesh.compare import html, machine, own, report
from resilmesh.compare.markdown import page
from resilmesh.compare.planes import (
    ALL_PLANES,
    CLIENTS,
    GRPC_CLIENTS,
    NATIVE,
    SIDECAR,
    client_version,
    envoy_version,
    missing,
    missing_for_identities,
)
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import BEHAVIOUR_ROUNDS, COST_ROUNDS, Result, Settings, compare, expected_seconds, steps
from resilmesh.compare.scenarios import SCENARIOS, Scenario
from resilmesh.compare.scenarios_grpc import GRPC_SCENARIOS
from resilmesh.compare.scenarios_identity import IDENTITY_SCENARIOS
from resilmesh.errors import ResilmeshError

#: By the word of ``--protocol``: its name, and the client that makes its calls unless the user says which.
_PROTOCOLS = {"http": ("HTTP/1.1", "httpx"), "http2": ("HTTP/2", "httpx-async"), "grpc": ("gRPC", "grpcio")}


def add(parser: argparse.ArgumentParser) -> None:
    names = list(dict.fromkeys(scenario.name for scenario in (*SCENARIOS, *IDENTITY_SCENARIOS, *GRPC_SCENARIOS)))
    parser.add_argument(
        "--client", choices=(*CLIENTS, *GRPC_CLIENTS),
        help="what makes the calls, in every plane (default: httpx, for HTTP/2 httpx-async, for gRPC grpcio)")
    parser.add_argument(
        "--protocol", choices=tuple(_PROTOCOLS), default="http",
        help="of every call: http is HTTP/1.1, grpc is unary calls and streams of responses (default: http)")
    parser.add_argument(
        "--only", metavar="NAMES", action="append", type=_some_of(names),
        help=f"these scenarios, with commas or repeated: {', '.join(names)} (those of mtls with --protocol http, the last three with grpc)")
    parser.add_argument(
        "--planes", metavar="NAMES", action="append", type=_some_of(ALL_PLANES),
        help=f"these planes, likewise: {', '.join(ALL_PLANES)} ({NATIVE} with --protocol grpc, those after it in the scenarios of mtls)")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals, failures and choices (default: 1)")
    parser.add_argument(
        "--rounds", type=_at_least_one,
        help=f"how often each scenario goes over all planes (default: {COST_ROUNDS} for the costs, {BEHAVIOUR_ROUNDS} for the others)")
    parser.add_argument("--json", metavar="FILE", type=_writable, help="write the whole report to FILE too")
    parser.add_argument("--markdown", metavar="FILE", type=_writable, help="write it as a page for people, too")
    parser.add_argument("--html", metavar="FILE", type=_writable, help="write it as one page with charts, which needs nothing else")
    parser.add_argument("--from", metavar="FILE", dest="report", type=Path, help="with --html: run nothing, show this report of --json")
    _add_own(parser.add_argument_group("your own policy and service, over HTTP"))


def _add_own(own: argparse._ArgumentGroup) -> None:
    own.add_argument("--policy", metavar="FILE", type=Path, help="instead of the scenarios: this policy")
    own.add_argument("--target", metavar="URL", help="and this running service, such as http://127.0.0.1:8080/v1/items")
    own.add_argument("--service", metavar="NAME", help="the policy's service (default: that of the target's host)")
    own.add_argument("--rate", type=_positive, default=50.0, help="calls per second (default: 50)")
    own.add_argument("--duration", type=_positive, default=5.0, help="seconds of each run (default: 5)")
    own.add_argument("--method", type=_method, default="GET", help="of every call (default: GET)")
    own.add_argument("--path", help="of every call, with its query (default: the target's)")
    own.add_argument("--workers", type=_at_least_one, default=32, help="calls at once at most (default: 32)")


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


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _method(text: str) -> str:
    if not text.isascii() or not text.isalpha():
        raise argparse.ArgumentTypeError(f"{text!r} is not a method such as GET")
    return text


def _writable(text: str) -> Path:
    """A file that can be written: better known now than in two minutes. One that was not there is not left behind empty."""
    file = Path(text)
    try:
        was_there = file.exists()
        file.touch()
        if not was_there:
            file.resolve().unlink()  # not the link to it
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return file


def run(options: argparse.Namespace) -> int:
    """Compare, print as it goes, write the files at the end. 0 when it ran, whatever the planes did; 2 when it could not."""
    if options.report is not None:
        return _show_again(options)
    protocol, default = _PROTOCOLS[options.protocol]
    if options.client is None:
        options.client = default
    if (why := _unfit(options)) is not None:
        return _refuse(why)
    if options.policy is not None or options.target is not None or options.service is not None:
        return _run_own(options)
    scenarios = [scenario for scenario in _scenarios(options.protocol) if _wanted(scenario.name, options.only)]
    asked = Settings(
        scenarios, [plane for plane in ALL_PLANES if _wanted(plane, options.planes)], client=options.client, seed=options.seed,
        rounds=options.rounds, protocol=protocol, command=shlex.join(["resilmesh", *sys.argv[1:]]),
    )
    used = {plane for scenario in scenarios for plane in asked.planes_of(scenario)}
    lacking = {plane: remedy for plane, remedy in missing().items() if plane in used}
    if (remedy := missing_for_identities()) is not None and any(each.identities for each in scenarios):
        lacking["the scenarios of mutual TLS"] = remedy
        scenarios = [each for each in scenarios if each.identities is None]
    settings = replace(asked, planes=[plane for plane in asked.planes if plane in used and plane not in lacking])
    settings = replace(settings, scenarios=[scenario for scenario in scenarios if settings.planes_of(scenario)])
    if not settings.scenarios:
        why = f"none of these scenarios runs on {', '.join(asked.planes)} over {protocol}: leave --planes out, or --only"
        if asked.planes == [NATIVE] and options.protocol != "grpc":
            why = f"{NATIVE} is a plane of --protocol grpc"
        return _refuse("; ".join(f"{plane}: {remedy}" for plane, remedy in lacking.items()) or why)
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
    _write(options, told, results)
    return 0


def _unfit(options: argparse.Namespace) -> str | None:
    """Why these options do not go together, or what is not installed; None when all is well."""
    protocol, client = options.protocol, options.client
    if (protocol == "grpc") != (client in GRPC_CLIENTS):
        fit = GRPC_CLIENTS if protocol == "grpc" else CLIENTS
        return f"--protocol {protocol}: {client} does not speak it; take --client {' or '.join(fit)}"
    if client_version(client) is None:
        library = client.partition("-")[0]
        return f"{library} is not installed: pip install 'resilmesh[{'grpc' if protocol == 'grpc' else library}]'"
    if protocol != "http" and importlib.util.find_spec("h2") is None:
        return f"--protocol {protocol}: h2 is not installed: pip install {'h2' if protocol == 'grpc' else repr('httpx[http2]')}"
    if protocol == "http2" and not client.endswith("-async"):
        return "--protocol http2: blocking clients lose calls when threads share an HTTP/2 connection; take --client httpx-async"
    if protocol == "grpc" and options.policy is not None:
        return f"--protocol grpc: {own.NO_OWN_GRPC}"
    return None


def _scenarios(protocol: str) -> Sequence[Scenario]:
    if protocol == "grpc":
        return GRPC_SCENARIOS
    return (*SCENARIOS, *IDENTITY_SCENARIOS) if protocol == "http" else [replace(scenario, protocol="HTTP2") for scenario in SCENARIOS]


def _write(options: argparse.Namespace, told: dict[str, Any], results: Sequence[Result]) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(page(told, results), encoding="utf-8")
    if options.html is not None:
        options.html.write_text(html.page(told), encoding="utf-8")


def _show_again(options: argparse.Namespace) -> int:
    """A report of earlier as a page."""
    if options.html is None:
        return _refuse("--from needs --html FILE")
    try:
        told = json.loads(options.report.read_text(encoding="utf-8"))
        options.html.write_text(html.page(told), encoding="utf-8")
    except (OSError, ValueError, html.NoReport) as error:
        return _refuse(f"{options.report}: {error}")
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


def _run_own(options: argparse.Namespace) -> int:
    """The user's policy and service. 130 when it was interrupted: what was measured by then is told all the same."""
    if options.policy is None or options.target is None:
        return _refuse("--policy FILE and --target URL belong together")
    if options.only is not None or options.markdown is not None or options.protocol != "http":
        return _refuse("--only, --markdown and --protocol are for the scenarios, not for --policy")
    try:
        scenario = own.prepare(
            options.policy, options.target, options.service, rate=options.rate, duration=options.duration, method=options.method,
            path=options.path, workers=options.workers,
        )
    except ResilmeshError as error:
        return _refuse(str(error))
    if scenario.protocol == "HTTP2" and not options.client.endswith("-async"):
        return _refuse("the service's protocol is HTTP2, which takes an asynchronous client here: --client httpx-async")
    lacking = {plane: remedy for plane, remedy in missing().items() if plane in own.OWN_PLANES and _wanted(plane, options.planes)}
    settings = Settings(
        scenarios=[scenario], planes=[each for each in own.OWN_PLANES if each not in lacking and _wanted(each, options.planes)],
        client=options.client, seed=options.seed, rounds=options.rounds or own.OWN_ROUNDS,
        protocol="HTTP/1.1" if scenario.protocol == "HTTP1" else "HTTP/2", command=shlex.join(["resilmesh", *sys.argv[1:]]),
    )
    if not settings.planes:
        return _refuse(f"of the planes asked for none runs with --policy; there are {', '.join(own.OWN_PLANES)}")
    return _compare_own(options, settings, scenario, lacking)


def _compare_own(options: argparse.Namespace, settings: Settings, scenario: own.Own, lacking: dict[str, str]) -> int:
    envoy = None if SIDECAR in missing() else envoy_version()
    here = machine.describe()
    started, began = datetime.now(UTC), time.monotonic()
    print(report.heading(settings, lacking, envoy, here), flush=True)
    for note in scenario.notes:
        print(textwrap.fill(note, 120, initial_indent="  ", subsequent_indent="  "))
    progress = Progress(sys.stderr, steps(settings), expected_seconds(settings))
    try:
        result, interrupted = own.compare_own(settings, scenario, progress)
    except ResilmeshError as error:
        return _refuse(str(error))
    finally:
        progress.clear()
    if result is None:
        raise KeyboardInterrupt
    print(f"\n{own.in_words(result)}")
    if interrupted:
        print("\nInterrupted: this is what had been measured on every plane by then.")
    told = own.as_json(
        report.as_json(settings, [result], lacking, envoy, here, started.strftime("%Y-%m-%dT%H:%M:%SZ"), time.monotonic() - began),
        scenario, interrupted,
    )
    _write(options, told, [result])
    return 130 if interrupted else 0


def _wanted(name: str, chosen: list[list[str]] | None) -> bool:
    return chosen is None or any(name in each for each in chosen)


def _refuse(why: str) -> int:
    print(f"resilmesh compare: {why}", file=sys.stderr)
    return 2

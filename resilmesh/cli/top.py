"""``resilmesh top``: watch a running program: rates, errors, latencies, circuits, ejections, retries, limits."""

from __future__ import annotations

import argparse
import math
import sys


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words."""
    parser.add_argument(
        "address", metavar="ADDRESS", nargs="?",
        help="of the program's admin server, HOST:PORT or unix:/PATH (default: RESILMESH_ADMIN, else 127.0.0.1:9901)",
    )
    parser.add_argument("--plain", action="store_true", help="print a table every interval (default where stdout is no terminal)")
    parser.add_argument("--json", action="store_true", help="print one JSON object every interval")
    parser.add_argument("--interval", type=_interval, default=1.0, metavar="S", help="seconds between two readings (default: 1)")
    parser.add_argument("--once", action="store_true", help="print one table, or object, of the time since the program began, and end")


def run(options: argparse.Namespace) -> int:
    """Watch. 0: fine. 2: what was given is no address, or with --once nobody answers."""
    from resilmesh.telemetry.admin_server import parse_address
    from resilmesh.telemetry.asking import address
    from resilmesh.top.watch import live, plain

    where = address(options.address)
    try:
        parse_address(where)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.plain or options.json or options.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        return plain(where, options.interval, as_json=options.json, once=options.once)
    return live(where, options.interval)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return seconds

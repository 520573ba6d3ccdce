"""``python -m tests.fuzz``: every target in one process, until a finding or until the time is over. See README.md."""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["resilmesh"]):
    from resilmesh.policy.schema import json_schema
    from tests.fuzz import targets

#: Of libFuzzer: an input may take so long and so much (the clock of the library itself is the targets' own), and be so large.
LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-max_len=8192", "-len_control=20")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600, help="how long (default: an hour)")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"), help="where inputs are kept (default: build/fuzz)")
    parser.add_argument("inputs", nargs="*", type=Path, help="run these inputs, such as a finding, and nothing else")
    options = parser.parse_args()
    logging.disable()  # a refused reload is logged, and nearly every input is one
    for each in options.inputs:
        print(f"{each}: {targets.run(each.read_bytes())}")
    if not options.inputs:
        fuzz(options.corpus, options.seconds)


def fuzz(corpus: Path, seconds: int) -> None:
    """Does not return: libFuzzer ends the process, with 0 when nothing was found."""
    kept, seeds = corpus / "kept", corpus / "seeds"
    for each in (kept, seeds):
        each.mkdir(parents=True, exist_ok=True)
    for data in targets.seeds():
        (seeds / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    words = corpus / "words.dict"
    words.write_text("".join(f'"{each}"\n' for each in sorted(set(_words(json_schema()))) if each.isascii() and '"' not in each))
    atheris.Setup([
        sys.argv[0], str(kept), str(seeds), f"-max_total_time={seconds}", f"-dict={words}", f"-artifact_prefix={corpus}/finding-",
        "-print_final_stats=1", *LIMITS,
    ], targets.run)
    atheris.Fuzz()


def _words(schema: Any) -> Iterator[str]:
    """Every key and every word that a policy can have."""
    if isinstance(schema, dict):
        yield from schema.get("properties", ())
        yield from (each for each in (*schema.get("enum", ()), schema.get("const")) if isinstance(each, str))
        for each in schema.values():
            yield from _words(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _words(each)


if __name__ == "__main__":
    main()

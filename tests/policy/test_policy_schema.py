"""The JSON Schema and the reference pages are made from the model, and say the same as the loader."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from resilmesh.errors import PolicyError
from resilmesh.policy import document
from resilmesh.policy.codes import CODES
from resilmesh.policy.load import load_file
from resilmesh.policy.reference import diagnostics_reference, policy_reference
from resilmesh.policy.schema import json_schema

HERE = Path(__file__).parent
REFERENCE = HERE.parents[1] / "docs" / "reference"
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
#: A finding of the schema too; of the others some say what JSON Schema cannot (a duration's bounds, the form of a key).
ALSO_OF_THE_SCHEMA = {"RM101", "RM102", "RM103", "RM104"}
#: 5.0, which JSON Schema counts among the integers.
WHOLE_FRACTIONS = {"count_minus_zero_point_zero", "count_that_is_a_fraction_of_nothing", "count_with_an_exponent"}


def read(path: Path) -> Any:
    return document.read(path.read_bytes(), str(path)).data


def properties() -> list[tuple[str, str, dict[str, Any]]]:
    blocks = {"Policy": SCHEMA, **SCHEMA["$defs"]}
    return [(name, key, field) for name, block in blocks.items() for key, field in block["properties"].items()]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("path", sorted((HERE / "testdata").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_schema_accepts_what_the_loader_accepts(path: Path) -> None:
    """Also of the policies whose mistakes only `check` sees. Those with mistakes of form are refused by both."""
    codes: set[str] = set()
    try:
        load_file(path)
    except PolicyError as error:
        codes = {each.code for each in error.diagnostics}
        if any(code < "RM1" for code in codes):
            return  # the text cannot be read: there is nothing to compare
    problems = [error.message for error in VALIDATOR.iter_errors(read(path))]
    if not codes:
        assert problems == []
    elif codes & ALSO_OF_THE_SCHEMA and path.stem not in WHOLE_FRACTIONS:
        assert problems != []


def test_the_schema_accepts_the_finished_form() -> None:
    VALIDATOR.validate(read(HERE / "testdata" / "finished_form.yaml"))


@pytest.mark.parametrize(("key", "accepted"), [("x-note", True), ("note", False), ("X-note", False), ("xnote", False)])
def test_the_schema_allows_only_x_keys_besides_its_own(key: str, accepted: bool) -> None:
    policies: list[dict[str, Any]] = [
        {key: 1}, {"defaults": {key: 1}}, {"services": [{"name": "a", key: 1}]}, {"services": [{"name": "a", "retryBudget": {key: 1}}]},
    ]
    for policy in policies:
        assert VALIDATOR.is_valid({"apiVersion": "resilmesh/v1", **policy}) is accepted


@pytest.mark.parametrize(("name", "key", "field"), [pytest.param(*each, id=f"{each[0]}-{each[1]}") for each in properties()])
def test_every_field_is_documented(name: str, key: str, field: dict[str, Any]) -> None:
    assert field["description"].rstrip().endswith((".", ".)", '."'))
    mapping = field["x-envoy"]
    assert mapping["fidelity"] in ("exact", "approximate", "library-only", "neutral")
    assert bool(mapping["field"]) == (mapping["fidelity"] in ("exact", "approximate"))
    assert bool(mapping["difference"]) == (mapping["fidelity"] in ("approximate", "library-only"))
    if isinstance(field.get("default"), int | float) and not isinstance(field["default"], bool):
        assert "x-unit" in field or name in ("SlidingWindow", "SlowStart", "Fallback"), "a number needs its unit"


def test_every_default_is_within_its_own_bounds() -> None:
    """pydantic does not validate defaults, so a slip in the model would go unseen."""
    wrong = []
    for name, key, field in properties():
        if field.get("default") is not None:
            form = {**field, "$defs": SCHEMA["$defs"]}
            wrong += [f"{name}.{key}: {error.message}" for error in jsonschema.Draft202012Validator(form).iter_errors(field["default"])]
    assert wrong == []


def test_defaults_of_durations_are_text() -> None:
    durations = {f"{name}.{key}": field.get("default") for name, key, field in properties() if field.get("x-unit") == "duration"}
    assert durations["Backoff.base"] == "25ms"
    assert durations["OutlierDetection.interval"] == "10s"
    assert all(value is None or isinstance(value, str) for value in durations.values())


@pytest.mark.parametrize(("page", "made", "option"), [
    ("policy.md", policy_reference, "--reference"), ("diagnostics.md", diagnostics_reference, "--diagnostics"),
])
def test_the_reference_is_current(page: str, made: Any, option: str) -> None:
    """When it is not: ``resilmesh schema --reference > docs/reference/policy.md``, and ``--diagnostics`` likewise."""
    assert (REFERENCE / page).read_text(encoding="utf-8") == made(), f"resilmesh schema {option} > docs/reference/{page}"


def test_the_reference_names_everything_and_links_to_what_is_there() -> None:
    page = policy_reference()
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors
    assert all(f"| `{key}` |" in page for _, key, _ in properties())
    assert all(f"| {code} |" in diagnostics_reference() for code in CODES)
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("|")}
    assert cells == {6}

"""Mistakes of a first program are said where they are made, in words, and not at the first call that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

import resilmesh
from resilmesh import Mesh, PolicyError
from resilmesh.http import AsyncTransport, Transport

POLICY = "apiVersion: resilmesh/v1\nservices: [{name: ledger}]\n"


@pytest.fixture
def mesh() -> Mesh:
    return Mesh.from_text(POLICY)


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), "1s"])
def test_an_interval_that_no_watch_can_keep(tmp_path: Path, interval: Any) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    with pytest.raises(ValueError, match="reload_interval is a number of seconds above 0, or None for never"):
        Mesh.from_file(path, reload_interval=interval)


def test_a_path_is_no_policy() -> None:
    with pytest.raises(TypeError, match=r"use Mesh\.from_file\(path\)"):
        Mesh("policy.yaml")  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize("kind", [Transport, AsyncTransport])
@pytest.mark.parametrize("given", ["policy.yaml", httpx.HTTPTransport()], ids=["path", "transport"])
def test_a_transport_wants_a_mesh(kind: Callable[..., Any], given: object) -> None:
    with pytest.raises(TypeError, match="the first argument is the Mesh"):
        kind(given)


@pytest.mark.parametrize(("kind", "inner", "lacking"), [
    (Transport, httpx.AsyncHTTPTransport(), "handle_request"), (AsyncTransport, httpx.HTTPTransport(), "handle_async_request"),
    (Transport, httpx.Client(), "handle_request"),
])
def test_an_inner_transport_of_the_other_kind(mesh: Mesh, kind: Callable[..., Any], inner: object, lacking: str) -> None:
    with pytest.raises(TypeError, match=f"has no {lacking}: it is no transport for {kind.__name__}"):
        kind(mesh, inner=inner)


@pytest.mark.parametrize("failures", [[OSError], OSError(), "OSError", (OSError, "x")])
def test_failures_that_are_neither_types_nor_a_predicate(mesh: Mesh, failures: Any) -> None:
    with pytest.raises(TypeError, match="failures is an exception type, a tuple of them, or a predicate"):
        mesh.guard("ledger", failures=failures)
    with pytest.raises(TypeError, match="failures is an exception type"):
        resilmesh.guard("ledger", failures=failures)


@pytest.mark.parametrize("ignore", [[OSError], OSError(), lambda error: True])
def test_what_is_ignored_are_types(mesh: Mesh, ignore: Any) -> None:
    with pytest.raises(TypeError, match="ignore is an exception type or a tuple of them"):
        mesh.attempts("ledger", ignore=ignore)


def test_an_observer_that_cannot_be_called(mesh: Mesh) -> None:
    with pytest.raises(TypeError, match="None cannot be called"):
        mesh.subscribe(None)  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize("seconds", ["1s", None, True, float("nan")])
def test_a_deadline_is_a_number(seconds: Any) -> None:
    with pytest.raises(TypeError, match="a deadline is a number of seconds"), resilmesh.deadline(seconds):
        raise AssertionError("must not be entered")


def test_a_dict_is_no_model_and_nothing_is_no_text() -> None:
    with pytest.raises(TypeError, match="model_validate"):
        Mesh.from_policy({"apiVersion": "resilmesh/v1"})  # type: ignore[arg-type]  # the mistake
    with pytest.raises(TypeError, match="str or bytes, not NoneType"):
        Mesh.from_text(None)  # type: ignore[arg-type]  # the mistake


def test_a_path_where_a_text_belongs(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Mesh.from_text takes the policy's text: use Mesh.from_file\(.*policy.yaml"):
        Mesh.from_text(tmp_path / "policy.yaml")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(PolicyError) as caught:
        Mesh.from_text("conf/policy.yaml")
    assert caught.value.__notes__ == ["this looks like a path: use Mesh.from_file('conf/policy.yaml')"]
    with pytest.raises(PolicyError) as other:
        Mesh.from_text("nonsense: true")
    assert not hasattr(other.value, "__notes__")


def test_settings_are_known_by_name() -> None:
    for make in (Mesh.from_text, Mesh.from_file, Mesh.from_policy):
        with pytest.raises((TypeError, PolicyError)):
            make("apiVersion: resilmesh/v1", nonsense=1)  # type: ignore[operator]  # the mistake


def test_the_version_is_what_was_installed() -> None:
    assert resilmesh.__version__ == version("resilmesh")


def test_the_transport_of_the_other_kind_of_client(mesh: Mesh) -> None:
    # One of httpx and httpx2 is seldom installed, and a type checker then knows neither base class.
    with pytest.raises(AttributeError, match=r"an AsyncClient needs resilmesh\.http\.AsyncTransport"):
        asyncio.run(httpx.AsyncClient(transport=Transport(mesh)).get("http://a.svc/"))  # type: ignore[arg-type]  # the mistake
    with pytest.raises(AttributeError, match=r"a Client needs resilmesh\.http\.Transport$"):
        httpx.Client(transport=AsyncTransport(mesh)).get("http://a.svc/")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        Transport(mesh).nonsense  # type: ignore[attr-defined]  # noqa: B018  # the mistake


@pytest.mark.parametrize("given", [httpx.Client, httpx, "client", Mesh.from_text(POLICY)], ids=["class", "module", "text", "swapped"])
def test_only_a_client_is_wrapped(mesh: Mesh, given: object) -> None:
    with pytest.raises(TypeError, match="is no client: wrap an instance of httpx's or httpx2's Client or AsyncClient"):
        resilmesh.wrap(given, mesh)


def test_a_fallback_that_nobody_would_await(mesh: Mesh) -> None:
    async def fallback(request: Any, outcome: Any) -> None: ...

    with pytest.raises(TypeError, match="cannot be awaited either: pass a plain function"):
        Transport(mesh, fallback=fallback)
    AsyncTransport(mesh, fallback=fallback)


def test_a_guard_without_its_service(mesh: Mesh) -> None:
    for mistake in (mesh.guard, resilmesh.guard, mesh.attempts):
        with pytest.raises(TypeError, match=r"the first argument is the service's name, as in guard\('ledger'\)"):
            mistake(len)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(TypeError, match="the first argument is the service's name"):
        mesh.call(len, "ledger")  # type: ignore[arg-type]  # the mistake


def test_options_of_a_guard(mesh: Mesh) -> None:
    with pytest.raises(TypeError, match="there is no failure=: did you mean failures="):
        mesh.guard("ledger", failure=OSError)  # type: ignore[call-arg]  # the mistake
    with pytest.raises(TypeError, match="idempotent is True, False or None, not 'no'"):
        mesh.guard("ledger", idempotent="no")  # type: ignore[arg-type]  # the mistake

"""The wheel: what is in it, that it works with what it declares and nothing else, and that every pin is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACKAGES = ("resilmesh", "resilmesh_grpc")


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--no-input", *words], check=True, cwd=ROOT, capture_output=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(target), ".")
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    }
    assert names == here
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert [name for name in names if name.startswith("resilmesh/compare/policies/") and name.endswith(".yaml")]


def test_the_licence_is_in_the_wheel(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (licence,) = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert "Apache License" in archive.read(licence).decode()


# ------------------------------------------------------------------- alone, in an environment of its own


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of a new environment that holds the wheel, and of everything else only what the wheel declares."""
    environment = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python3.*/site-packages")
    for distribution in closure(PROJECT["dependencies"]):
        for top in {file.parts[0] for file in metadata.files(distribution) or () if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(metadata.distribution(distribution).locate_file(top))
    pip("--python", str(environment / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    return environment / "bin"


def closure(requirements: list[str]) -> set[str]:
    """These requirements, without extras, and what they require in turn."""
    found: set[str] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        todo += map(Requirement, metadata.requires(name) or ())
    return found


def run(program: Path | str, *words: str, at: Path) -> str:
    done = subprocess.run([str(program), *words], capture_output=True, text=True, cwd=at, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


POLICY = "apiVersion: resilmesh/v1\nservices:\n- {name: ledger, hosts: [ledger.internal], timeout: 1s, circuitBreaker: {}}\n"


def test_the_commands_work_alone(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    assert PROJECT["version"] in run(alone / "resilmesh", "--version", at=tmp_path)
    run(alone / "resilmesh", "check", "policy.yaml", at=tmp_path)
    assert "1s" in run(alone / "resilmesh", "explain", "policy.yaml", "GET", "http://ledger.internal/", at=tmp_path)
    assert "ledger.internal" in run(alone / "resilmesh", "export", "envoy", "policy.yaml", at=tmp_path)


def test_a_guard_works_alone(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    program = """
import asyncio, resilmesh
mesh = resilmesh.Mesh.from_file("policy.yaml")
@mesh.guard("ledger")
def add(a, b): return a + b
@mesh.guard("ledger")
async def wait(a): return a
print(add(1, b=2), asyncio.run(wait(4)))
"""
    assert run(alone / "python", "-c", program, at=tmp_path) == "3 4\n"


# ----------------------------------------------------------------------------------- extras and pins

EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize("extra", ["httpx", "httpx2", "grpc", "identity", "otel", "mesh"])
def test_extra(extra: str) -> None:
    assert EXTRAS[extra]
    (everything,) = map(Requirement, EXTRAS["all"])
    assert extra in everything.extras


def test_all_is_all() -> None:
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == set(EXTRAS) - {"all"}


def pins() -> dict[str, str]:
    """Name to version, of constraints.txt."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def wanted() -> list[str]:
    extras = [text for texts in EXTRAS.values() for text in texts]
    return sorted({*PROJECT["dependencies"], *extras, *PYPROJECT["dependency-groups"]["dev"], *PYPROJECT["build-system"]["requires"]})


@pytest.mark.parametrize("text", wanted())
def test_a_pin_satisfies(text: str) -> None:
    requirement = Requirement(text)
    name = canonicalize_name(requirement.name)
    if name == "resilmesh":
        assert requirement.extras <= set(EXTRAS)
    else:
        assert requirement.specifier.contains(pins()[name]), "make constraints"


def test_no_pin_names_where_it_comes_from() -> None:
    assert not re.search(r"://|file:|index-url", (ROOT / "constraints.txt").read_text())

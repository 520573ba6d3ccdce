"""What is committed is what `make protos` makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc_tools import protoc

PROTOS = Path(__file__).parent / "protos"
ROOT = PROTOS.parents[2]
MADE = ("shop_pb2.py", "shop_pb2.pyi", "shop_pb2_grpc.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the compiled protos."""
    to = tmp_path_factory.mktemp("protos")
    words = [f"-I{ROOT}", f"--python_out={to}", f"--pyi_out={to}", f"--grpc_python_out={to}", str(PROTOS / "shop.proto")]
    assert protoc.main(["protoc", *words]) == 0
    return to / PROTOS.relative_to(ROOT)


@pytest.mark.parametrize("name", MADE)
def test_compiled_protos_are_those_of_the_proto(made: Path, name: str) -> None:
    assert (PROTOS / name).read_text() == (made / name).read_text(), "run `make protos`"


def test_nothing_else_is_made(made: Path) -> None:
    assert {file.name for file in made.iterdir()} == set(MADE)

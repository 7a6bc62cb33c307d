"""Options and fixtures of all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reducer",
        default=None,
        help="module:Class of a reducer outside the package, for tests/test_contract.py",
    )


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of the parity tensors of the released codes."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "goldens"
    if not folder.is_dir():
        pytest.skip(f"no parity tensors: {folder} is absent (they are not part of the repository)")
    return folder


@pytest.fixture(autouse=True)
def _own_scope() -> Iterator[None]:
    """A runner sets mmengine's default scope for the whole process; no test inherits it."""
    yield
    DefaultScope._instance_dict.clear()

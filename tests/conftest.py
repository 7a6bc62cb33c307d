"""Options and fixtures of all tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reducer",
        default=None,
        help="module:Class of a reducer outside the package; tests/test_contract.py runs on it alone",
    )

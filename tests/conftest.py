"""What all tests share: the flag that rewrites golden files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-update", action="store_true", help="rewrite the files under tests/golden/")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compare a text with a golden file, or write it there when pytest runs with --golden-update."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--golden-update"):
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; write it with --golden-update"
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; see git diff after --golden-update"

    return check

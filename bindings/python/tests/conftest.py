"""Where the fixtures are: TERCET_FIXTURES, as written by `tercet-fixtures FOLDER`."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fixtures() -> Path:
    folder = os.environ.get("TERCET_FIXTURES")
    if not folder:
        pytest.fail("set TERCET_FIXTURES to a folder written by tercet-fixtures")
    return Path(folder)


@pytest.fixture
def shop(fixtures: Path) -> str:
    return str(fixtures / "shop.tercet")

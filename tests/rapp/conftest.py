"""Where the public measurements lie, for tests that read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of measured data: HASFAAS_DATA, or `shared/data` beside the project. Skips without it."""
    folder = Path(os.environ.get("HASFAAS_DATA", BESIDE))
    if not (folder / "v100").is_dir():
        pytest.skip(f"no measured data in {folder}: set HASFAAS_DATA to the folder that holds v100/ and gpu/")
    return folder

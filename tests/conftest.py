"""What holds for all tests, and where the public measurements and traces lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine makes any single example slow; hypothesis's limit of 200 ms would then fail a test that is right.
settings.register_profile("hasfaas", deadline=None)
settings.load_profile("hasfaas")

BESIDE = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of measured data: HASFAAS_DATA, or `shared/data` beside the project. Skips without it."""
    folder = Path(os.environ.get("HASFAAS_DATA", BESIDE))
    if not (folder / "v100").is_dir():
        pytest.skip(f"no measured data in {folder}: set HASFAAS_DATA to the folder that holds v100/ and gpu/")
    return folder

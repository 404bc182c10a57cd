"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# A busy machine makes any single example slow; hypothesis's limit of 200 ms would then fail a test that is right.
settings.register_profile("hasfaas", deadline=None)
settings.load_profile("hasfaas")

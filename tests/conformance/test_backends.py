"""The public suite on every entry of conftest.py; what our gateway keeps besides is in test_beyond_the_contract.py."""

from __future__ import annotations

from hasfaas.testing.backend_conformance import BackendConformance


class TestBackends(BackendConformance):
    """All areas."""

"""For who extends hasfaas: the suite that a backend has to pass (`backend_conformance`), and what it stands on.

It needs `pip install "hasfaas[testing]"`. Nothing else of hasfaas imports this.
"""

import pytest

# As in the tests of one's own, an assertion that fails shows its values.
pytest.register_assert_rewrite("hasfaas.testing.backend_conformance")

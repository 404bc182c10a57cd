"""The contract of `batch=`: stacked on axis 0, split on axis 0, and a bad item fails alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hasfaas import FunctionError, InvalidRequestError
from hasfaas.testing.apps import batches
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.running import RunningBackend


def outcomes(calls: list[Any]) -> list[Any]:
    """What each call gave, an exception for those that raised."""
    found: list[Any] = []
    for call in calls:
        try:
            found.append(call.result(timeout_s=30))
        except Exception as exc:
            found.append(exc)
    return found


class BatchContract(Area):
    """`batch=`, its stacking, its splitting, its hooks."""

    def test_calls_share_executions_and_get_their_own_rows(self, backend: RunningBackend) -> None:
        rows = [np.array([i, i + 1.0, 2.0]) for i in range(64)]
        answers = list(batches.sums.map(rows))
        assert [float(answer["sum"]) for answer in answers] == [2.0 * i + 3.0 for i in range(64)]
        sizes = [answer["rows"] for answer in answers]
        assert max(sizes) <= 8
        assert sum(1 / size for size in sizes) < 40, "calls were hardly batched"

    def test_one_call_is_a_batch_of_one(self, backend: RunningBackend) -> None:
        answer = batches.sums.remote(np.ones(3), scale=2)
        assert (float(answer["sum"]), answer["rows"]) == (6.0, 1)

    def test_a_bad_item_fails_alone(self, backend: RunningBackend) -> None:
        batches.sums.remote(np.ones(3))
        rows = [np.full(3, float(i)) for i in range(16)]
        rows[5], rows[9] = np.ones(4), np.array([1.0, 666.0, 1.0])
        found = outcomes([batches.sums.spawn(row) for row in rows])
        assert isinstance(found[5], ValueError)
        assert "rows of 3" in str(found[5])
        assert isinstance(found[9], KeyError)
        assert isinstance(found[9], FunctionError)
        for i in set(range(16)) - {5, 9}:
            assert float(found[i]["sum"]) == 3.0 * i

    def test_calls_with_other_arguments_are_not_mixed(self, backend: RunningBackend) -> None:
        calls = [batches.sums.spawn(np.ones(3), scale=1 + i % 2) for i in range(16)]
        assert [float(one["sum"]) for one in outcomes(calls)] == [3.0, 6.0] * 8

    @pytest.mark.parametrize(("name", "text"), [("short", r"array of shape \(3,\)"), ("scalar", "a int")])
    def test_a_result_of_another_length_is_told(self, backend: RunningBackend, name: str, text: str) -> None:
        found = outcomes([getattr(batches, name).spawn(np.ones(2)) for _ in range(5)])
        assert {type(one) for one in found} == {InvalidRequestError}
        assert {one.reason for one in found} == {"BAD_RESULT_SHAPE"}
        with pytest.raises(InvalidRequestError, match=text):
            getattr(batches, name).remote(np.ones(2))

    def test_hooks_run_for_each_item_and_fail_alone(self, backend: RunningBackend) -> None:
        words = ["one", "undecodable", "three", "unencodable", "five"]
        batches.Lookup.remote("warm")
        found = outcomes([batches.Lookup.spawn(word) for word in words])
        assert [found[0], found[2], found[4]] == [[6, 222], [10, 232], [8, 204]]
        assert isinstance(found[1], ValueError)
        assert isinstance(found[3], ValueError)

    def test_torch_tensors_and_modules(self, backend: RunningBackend) -> None:
        torch = pytest.importorskip("torch")
        from hasfaas.testing.apps import tensors

        sent = torch.arange(1_000_000, dtype=torch.float32).reshape(1000, 1000)
        answer = tensors.double.remote(sent.t())
        assert torch.equal(answer["twice"], 2 * sent.t())
        assert answer["threads"] == 1
        rows = [torch.full((8,), float(i)) for i in range(12)]
        local = tensors.Linear()
        for row, result in zip(rows, tensors.Linear.map(rows), strict=True):
            assert torch.allclose(result, local(row[None])[0], atol=1e-5)

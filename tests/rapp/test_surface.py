"""The latency surface as a value: what it refuses, how it is read, and that JSON keeps it."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.devices.sim import SimProfile
from hasfaas.executor import quota as rule
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface, Surfaces, monotone, z_of

BATCHES, SHARES, QUOTAS = (1, 2, 4, 8), (10.0, 25.0, 50.0, 100.0), (0.1, 0.35, 0.7, 1.0)
TIMING = Timing()


def surface(sigma: float = 0.1) -> Surface:
    b, s = np.meshgrid(BATCHES, SHARES, indexing="ij")
    return Surface(BATCHES, SHARES, (1.0 + 0.5 * b) * (0.2 + 80.0 / s), np.full(b.shape, sigma))


def random_surfaces() -> st.SearchStrategy[Surface]:
    numbers = st.lists(st.floats(0.01, 100.0), min_size=16, max_size=16)
    doubts = st.lists(st.floats(0.0, 1.0), min_size=16, max_size=16)
    return st.builds(
        lambda n, d: Surface(BATCHES, SHARES, monotone(np.reshape(n, (4, 4))), np.reshape(d, (4, 4))), numbers, doubts
    )


# -- what it is


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batches": (1, 1, 2, 4)}, "must be positive and rise"),
        ({"sm_percents": ()}, "must be positive and rise"),
        ({"batches": (1, 2, 4)}, r"has the shape \(4, 4\), it needs \(3, 4\)"),
        ({"hold_ms": np.full((4, 4), np.nan)}, "hold_ms must be positive and finite"),
        ({"hold_ms": np.zeros((4, 4))}, "hold_ms must be positive and finite"),
        ({"log_sigma": np.full((4, 4), -0.1)}, "log_sigma must be finite and not negative"),
        ({"hold_ms": [[1.0], [2.0, 3.0]]}, "rows of numbers only"),
        ({"hold_ms": surface().hold_ms[::-1]}, "must not fall as the batch grows"),
        ({"hold_ms": surface().hold_ms[:, ::-1]}, "nor rise as the SM share grows"),
    ],
)
def test_it_refuses_what_is_no_surface(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        Surface(**{**surface().to_dict(), **change})
    assert caught.value.reason == "BAD_SURFACE"


def test_its_arrays_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        surface().hold_ms[0, 0] = 1.0


@given(st.lists(st.floats(0.01, 100.0), min_size=20, max_size=20))
def test_monotone_projects_and_projects_once(numbers: list[float]) -> None:
    given_ms = np.reshape(numbers, (4, 5))
    projected = monotone(given_ms)
    assert np.all(np.diff(projected, axis=0) >= 0)
    assert np.all(np.diff(projected, axis=1) <= 0)
    assert np.array_equal(monotone(projected), projected)
    assert given_ms.min() <= projected.min() <= projected.max() <= given_ms.max()


# -- how it is read


@given(random_surfaces(), st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.99]), st.sampled_from(["mean", "worst", "idle"]))
def test_latencies_are_monotone_in_batch_share_and_quota(one: Surface, quantile: float, law: Any) -> None:
    latency_ms = one.latency_ms(QUOTAS, TIMING, law, quantile)
    assert latency_ms.shape == (4, 4, 4)
    slack = 1e-9 * latency_ms.max()
    assert np.all(np.diff(latency_ms, axis=0) >= -slack)
    assert np.all(np.diff(latency_ms, axis=1) <= slack)
    if law == "mean":  # the other laws round to whole leases
        assert np.all(np.diff(latency_ms, axis=2) <= slack)


@given(random_surfaces())
def test_quantiles_keep_their_order_and_bounds(one: Surface) -> None:
    rows = [one.quantile_ms(q) for q in (0.05, 0.5, 0.8, 0.95)]
    assert all(np.all(a <= b) for a, b in itertools.pairwise(rows))
    # Never inside of what the uncertainty says.
    assert np.all(rows[3] >= one.hold_ms * np.exp(z_of(0.95) * one.log_sigma) * (1 - 1e-12))
    assert np.all(rows[0] <= one.hold_ms * np.exp(z_of(0.05) * one.log_sigma) * (1 + 1e-12))


def test_a_quantile_is_that_many_deviations_off() -> None:
    assert z_of(0.95) == pytest.approx(1.6449, abs=1e-4)
    assert surface(0.2).quantile_ms(0.95) == pytest.approx(surface().hold_ms * np.exp(0.2 * 1.6449), rel=1e-4)
    for bad in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidRequestError, match="between 0 and 1"):
            z_of(bad)


@pytest.mark.parametrize("batch", [0.5, 1, 3, 8, 32])
@pytest.mark.parametrize("share", [5.0, 10.0, 33.0, 100.0])
def test_between_the_nodes_it_reads_as_the_sim_device(batch: float, share: float) -> None:
    one = surface()
    sim = SimProfile(BATCHES, SHARES, tuple(map(tuple, one.hold_ms.tolist())))
    assert one.hold(batch, share) == pytest.approx(sim.latency_ms(batch, share), rel=1e-12)  # type: ignore[arg-type]


@given(random_surfaces(), st.integers(1, 40), st.floats(1.0, 100.0))
def test_one_value_and_many_are_read_alike(one: Surface, batch: int, share: float) -> None:
    assert one.over((batch,), (share,)).hold_ms[0, 0] == pytest.approx(one.hold(batch, share), rel=1e-9)
    assert one.over((batch,), (share,)).log_sigma[0, 0] == pytest.approx(one.doubt(batch, share), abs=1e-9)


def test_a_single_batch_goes_on_in_proportion() -> None:
    one = Surface((2,), (100.0,), [[3.0]], [[0.1]])
    assert one.hold(8, 50.0) == pytest.approx(12.0)
    assert one.over((2, 8), (100.0,)).hold_ms[:, 0] == pytest.approx([3.0, 12.0])


def test_the_laws_are_those_of_the_executor() -> None:
    one = surface()
    for law, of_one in (
        ("mean", rule.saturated_mean_ms),
        ("worst", functools.partial(rule.saturated_worst_ms, timing=TIMING)),
        ("idle", functools.partial(rule.idle_ms, timing=TIMING)),
    ):
        read = one.latency_ms(QUOTAS, TIMING, law)  # type: ignore[arg-type]
        expected = [[[of_one(t, q) for q in QUOTAS] for t in row] for row in one.hold_ms.tolist()]
        assert read == pytest.approx(np.array(expected), rel=1e-6)


def test_throughput_is_quota_batch_over_hold() -> None:
    one = surface()
    assert one.throughput(QUOTAS)[2, 3, 1] == pytest.approx(0.35 * 4 / one.hold(4, 100.0) * 1e3)


@pytest.mark.parametrize("quotas", [(), (0.0, 0.5), (30.0,), (float("nan"),)])
def test_quotas_are_shares_of_one(quotas: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequestError, match=r"must lie in \(0, 1\]"):
        surface().latency_ms(quotas, TIMING)


# -- as plain values


@given(random_surfaces())
def test_json_keeps_every_bit(one: Surface) -> None:
    back = Surface.from_dict(json.loads(json.dumps(one.to_dict())))
    assert (back.batches, back.sm_percents) == (one.batches, one.sm_percents)
    assert np.array_equal(back.hold_ms, one.hold_ms)
    assert np.array_equal(back.log_sigma, one.log_sigma)


@pytest.mark.parametrize("data", [{}, {"batches": [1]}, [], {**surface().to_dict(), "batches": ["x"] * 4}])
def test_other_values_are_refused(data: Any) -> None:
    with pytest.raises(InvalidRequestError, match="surface"):
        Surface.from_dict(data)


# -- many


def test_a_stack_reads_as_its_surfaces() -> None:
    parts = {"f": surface(0.1), "g": Surface(BATCHES, SHARES, 3.0 * surface().hold_ms, np.full((4, 4), 0.3))}
    read = Surfaces.of(parts).latency_ms(QUOTAS, TIMING, "worst", 0.9)
    for row, one in zip(read, parts.values(), strict=True):
        assert np.array_equal(row, one.latency_ms(QUOTAS, TIMING, "worst", 0.9))


def test_a_stack_has_one_pair_of_axes() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        Surfaces.of({})
    with pytest.raises(InvalidRequestError, match="'g' has other batches"):
        Surfaces.of({"f": surface(), "g": surface().over((1, 2), SHARES)})

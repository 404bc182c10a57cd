"""Properties of the analytic time: bounds, monotony, wave steps, launch floor."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.description import DEVICES, DeviceDescription, describe
from hasfaas.rapp.operator import Operator
from hasfaas.rapp.roofline import (
    PRODUCT_FEATURES,
    VECTOR_FEATURES,
    Shapes,
    ceilings,
    effective_sms,
    features,
    time_s,
)

SHARES = np.linspace(0.01, 1.0, 100)


def products(element_bytes: int) -> Shapes:
    rng = np.random.default_rng(7)
    rows, reduction, columns = np.exp(rng.uniform(0, 9, (3, 300))).round()
    return Shapes.products(rng.integers(1, 40, 300), rows, reduction, columns, element_bytes)


def vectors() -> Shapes:
    rng = np.random.default_rng(8)
    rows, columns = np.exp(rng.uniform(0, 9, (2, 300))).round()
    return Shapes.vectors(rows, columns, 8 * rows * columns, rows * columns, 4)


CASES = [products(4), products(2), vectors()]


@pytest.mark.parametrize("shapes", CASES, ids=["fp32", "bf16", "vector"])
@pytest.mark.parametrize("name", ["V100", "T4", "L4", "H100", "B200"])
def test_time_never_rises_with_the_share(shapes: Shapes, name: str) -> None:
    times = np.array([time_s(shapes, describe(name), share) for share in SHARES])
    assert np.all(np.diff(times, axis=0) <= 1e-12 * times[:-1])


@pytest.mark.parametrize("shapes", CASES, ids=["fp32", "bf16", "vector"])
@pytest.mark.parametrize("field", ["fp32_flops_per_s", "tensor_flops_per_s", "bandwidth_bytes_per_s"])
def test_time_never_rises_with_a_ceiling(shapes: Shapes, field: str) -> None:
    card = describe("A100-80")
    better = attrs.evolve(card, **{field: 1.7 * getattr(card, field)})
    for share in (0.05, 0.5, 1.0):
        assert np.all(time_s(shapes, better, share) <= time_s(shapes, card, share) * (1 + 1e-12))


@pytest.mark.parametrize("shapes", CASES, ids=["fp32", "bf16", "vector"])
@pytest.mark.parametrize("card", DEVICES.values(), ids=list(DEVICES))
def test_time_is_never_below_the_ceilings(shapes: Shapes, card: DeviceDescription) -> None:
    tensor = shapes.product & (shapes.element_bytes <= 2)
    peak = np.where(tensor, card.tensor_flops_per_s, card.fp32_flops_per_s)
    floor = np.maximum(shapes.flops / peak, shapes.moved / card.bandwidth_bytes_per_s)
    assert np.all(time_s(shapes, card, 1.0) >= floor + card.launch_s - 1e-15)


def test_one_block_more_than_a_wave_starts_another() -> None:
    card = describe("V100-PCIE-32GB")
    almost, full, more = (
        float(ceilings(Shapes.products([blocks], [128], [8192], [128], 4), card).wave[0]) for blocks in (79, 80, 81)
    )
    assert almost == pytest.approx(full)  # 80 SMs, one tile of 128 x 128 each
    assert more == pytest.approx(1.5 * full)  # three waves of tiles half as large are better than two of whole ones


def test_waves_step_when_the_share_cuts_the_sms() -> None:
    card = describe("V100-PCIE-32GB")
    shapes = Shapes.products([40], [128], [8192], [256], 4)  # 80 blocks of 128 x 128 on 80 SMs
    whole = float(ceilings(shapes, card, 1.0).wave[0])
    assert float(ceilings(shapes, card, 79 / 80).wave[0]) > 1.05 * whole
    assert float(ceilings(shapes, card, 0.5).wave[0]) == pytest.approx(2 * whole)


def test_the_launch_floor_holds_for_a_tiny_operator() -> None:
    card = attrs.evolve(describe("T4"), launch_s=5e-6)
    tiny = Shapes.products([1], [1], [1], [1], 4)
    assert float(time_s(tiny, card)[0]) == pytest.approx(5e-6, rel=0.05)


def test_bandwidth_saturates_before_all_sms_work() -> None:
    card = describe("A100-80")
    copy = Shapes.vectors([1 << 20], [256], [8.0 * (1 << 28)], [1.0], 4)
    assert time_s(copy, card, 0.6) == pytest.approx(time_s(copy, card, 1.0))
    assert time_s(copy, card, 0.25)[0] > 1.9 * time_s(copy, card, 1.0)[0]


def test_at_least_one_sm() -> None:
    assert effective_sms(describe("A100-80"), 0.001) == 1
    assert effective_sms(describe("A100-80"), 1.0) == 108
    assert effective_sms(describe("A100-80"), 0.5) == 54


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_bad_share_is_refused(share: float) -> None:
    with pytest.raises(InvalidRequestError, match="sm_share="):
        time_s(products(4), describe("V100"), share)


def test_features_are_finite_and_free_of_the_scale_of_the_device() -> None:
    card = describe("L4")
    for shapes, names in ((products(2), PRODUCT_FEATURES), (vectors(), VECTOR_FEATURES)):
        found = features(shapes, card, 0.3)
        assert found.shape == (300, len(names))
        assert np.isfinite(found).all()
    # A device twice as fast in all: only the column that holds the time itself (its floor is fixed) changes.
    fast = attrs.evolve(
        card,
        tensor_flops_per_s=2 * card.tensor_flops_per_s,
        bandwidth_bytes_per_s=2 * card.bandwidth_bytes_per_s,
    )
    moved = np.abs(features(products(2), fast) - features(products(2), card)).max(axis=0)
    assert [name for name, change in zip(PRODUCT_FEATURES, moved, strict=True) if change > 1e-9] == ["log_tr"]


def test_shapes_of_operators() -> None:
    linear = Operator("linear", "linear", 2e6, 4e4, 1e4, rows=10, columns=100, reduction=1000, element_bytes=2)
    add = Operator("elementwise", "add", 100.0, 800.0, 400.0, rows=10, columns=10)
    shapes = Shapes.of([linear, add])
    assert shapes.product.tolist() == [True, False]
    assert shapes.moved.tolist() == [5e4, 1200.0]
    assert len(Shapes.of([])) == 0
    assert np.isfinite(time_s(shapes, describe("V100"))).all()

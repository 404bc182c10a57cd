"""A description calibrated for one GPU: what is measured, scaled or assumed, and which way it moves."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.description import DEVICES, describe
from hasfaas.rapp.gpu_description import TOLERANCE, MeasuredGpu, MeasuredShare, describe_measured, saturation
from hasfaas.rapp.roofline import Shapes, ceilings, time_s

L4 = describe("L4")


def _gpu(name: str = "NVIDIA L4", *curve: tuple[float, int, float, float], **values: float | None) -> MeasuredGpu:
    shares = curve or ((20.0, 12, 1.2e11, 5e12), (50.0, 29, 2.3e11, 1.2e13), (100.0, 58, 2.7e11, 2.4e13))
    sizes = {"l2_bytes": 40e6, "memory_bytes": 2.4e10, **values}
    return MeasuredGpu(name, tuple(MeasuredShare(*share) for share in shares), 2e-6, 2.0e9, note="this one", **sizes)


def test_a_gpu_of_the_table_has_measured_peaks_and_the_rest_of_its_data_sheet() -> None:
    made = describe_measured(_gpu())
    assert made.name == L4.name  # trained laws know it by that
    assert (made.sms, made.bandwidth_bytes_per_s, made.fp32_flops_per_s) == (58, 2.7e11, 2.4e13)
    assert made.tensor_flops_per_s == pytest.approx(L4.tensor_flops_per_s * 2.4e13 / L4.fp32_flops_per_s)
    assert (made.launch_s, made.l2_bytes, made.memory_bytes) == (2e-6, 40e6, 2.4e10)
    assert (made.lanes_per_sm, made.low_power) == (L4.lanes_per_sm, True)
    assert made.saturation == pytest.approx(29 / 58 * 2.7 / 2.3)
    assert "measured (this one)" in made.source
    assert L4.source in made.source


def test_sizes_that_were_not_asked_for_are_those_of_the_data_sheet() -> None:
    made = describe_measured(_gpu(l2_bytes=None, memory_bytes=None))
    assert (made.l2_bytes, made.memory_bytes) == (L4.l2_bytes, L4.memory_bytes)


def test_a_slice_has_its_part_of_the_tensor_peak_of_its_gpu() -> None:
    h100 = describe("H100")
    eighth = (100.0, 16, h100.bandwidth_bytes_per_s / 8, h100.fp32_flops_per_s / 8)
    made = describe_measured(_gpu("NVIDIA H100 80GB HBM3 MIG 1g.10gb", eighth))
    assert made.sms == 16
    assert made.tensor_flops_per_s == pytest.approx(h100.tensor_flops_per_s / 8)
    assert made.saturation == h100.saturation  # nothing but the whole was measured


@pytest.mark.parametrize(("flops_per_s", "lanes"), [(60 * 2 * 58 * 2e9, 64), (115 * 2 * 58 * 2e9, 128)])
def test_a_gpu_of_no_table_is_described_by_its_probes_and_named_assumptions(flops_per_s: float, lanes: int) -> None:
    made = describe_measured(_gpu("NVIDIA Tomorrow 1", (100.0, 58, 2.7e11, flops_per_s)))
    assert (made.name, made.sms, made.lanes_per_sm) == ("NVIDIA Tomorrow 1", 58, lanes)
    assert made.tensor_flops_per_s == 4 * flops_per_s
    assert (made.l2_bytes, made.memory_bytes, made.launch_s) == (40e6, 2.4e10, 2e-6)
    assert "assumed" in made.source


def test_the_assumed_tensor_peak_is_on_the_careful_side_of_data_centre_cards() -> None:
    for name in ("V100", "T4", "A100", "A30", "H100", "H200", "B200"):
        assert 4 * describe(name).fp32_flops_per_s < describe(name).tensor_flops_per_s


def test_what_cannot_be_described_says_why() -> None:
    with pytest.raises(InvalidRequestError, match="never as a whole") as raised:
        describe_measured(_gpu("NVIDIA L4", (50.0, 29, 2.3e11, 1.2e13)))
    assert raised.value.reason == "BAD_PROBES"
    with pytest.raises(InvalidRequestError, match="doctor --probe") as raised:
        describe_measured(_gpu("NVIDIA Tomorrow 1", l2_bytes=None))
    assert raised.value.reason == "UNKNOWN_DEVICE"
    with pytest.raises(ValueError, match="bandwidth"):
        MeasuredShare(100.0, 58, 0.0, 1e12)


# -- properties of any measured curve

SMS = 100
curves = st.lists(
    st.tuples(st.integers(1, SMS - 1), st.floats(0.01, 1.2)), max_size=8, unique_by=lambda point: point[0]
)


def _measured(curve: list[tuple[int, float]], whole: float = 1e12, fp32: float = 2e13) -> MeasuredGpu:
    shares = [MeasuredShare(float(sms), sms, part * 1e12, part * 1e13) for sms, part in curve]
    return MeasuredGpu("NVIDIA L4", (*shares, MeasuredShare(100.0, SMS, whole, fp32)), 2e-6, 2e9)


@given(curves)
def test_the_bandwidth_of_a_share_is_never_above_what_it_drew(curve: list[tuple[int, float]]) -> None:
    gpu = _measured(curve)
    made = describe_measured(gpu)
    one = Shapes.vectors([1e5], [1e3], [1e9], [1e3], 4)
    for share in gpu.shares:
        drawn = 1e9 / ceilings(one, made, share.sms / SMS).memory[0]
        straight = made.bandwidth_bytes_per_s * share.sms / SMS  # a slower one than this no share from 0 to 1 can give
        assert drawn <= max(share.bandwidth_bytes_per_s / (1 - TOLERANCE), straight) * (1 + 1e-9)


@given(curves)
def test_saturation_is_a_share_that_is_not_below_the_smallest_measured(curve: list[tuple[int, float]]) -> None:
    found = describe_measured(_measured(curve)).saturation
    if curve:
        assert min(sms for sms, _ in curve) / SMS <= found <= 1.0
    else:
        assert found == L4.saturation


@given(curves.filter(bool), st.data())
def test_more_bandwidth_at_a_share_never_saturates_later(curve: list[tuple[int, float]], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(curve) - 1))
    sms, part = curve[index]
    better = [*curve[:index], (sms, part * data.draw(st.floats(1.0, 3.0))), *curve[index + 1 :]]
    assert describe_measured(_measured(better)).saturation <= describe_measured(_measured(curve)).saturation


@given(curves, st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_a_faster_gpu_is_never_predicted_slower_as_a_whole(
    curve: list[tuple[int, float]], more_bytes: float, more_flops: float
) -> None:
    slow, fast = (
        describe_measured(_measured(curve, 1e12 * a, 2e13 * b)) for a, b in ((1, 1), (more_bytes, more_flops))
    )
    assert fast.tensor_flops_per_s >= slow.tensor_flops_per_s
    shapes = [Shapes.products([1, 8], [128, 4096], [512, 4096], [64, 4096], size) for size in (2, 4)]
    for some in (*shapes, Shapes.vectors([10, 1e4], [1e3, 1e4], [1e5, 1e9], [1e4, 1e8], 4)):
        assert np.all(time_s(some, fast) <= time_s(some, slow) * (1 + 1e-9))


@given(st.sampled_from([entry for entry in DEVICES.values() if entry.name != "P4"]), st.floats(0.5, 1.0))
def test_a_gpu_that_reaches_a_part_of_its_sheet_keeps_the_ratios(entry: object, part: float) -> None:
    assert isinstance(entry, type(L4))
    whole = MeasuredShare(100.0, entry.sms, entry.bandwidth_bytes_per_s * part, entry.fp32_flops_per_s * part)
    made = describe_measured(MeasuredGpu(entry.name, (whole,), entry.launch_s, 1.5e9))
    assert made.tensor_flops_per_s == pytest.approx(entry.tensor_flops_per_s * part)
    same = attrs.evolve(made, source="")
    expected = attrs.evolve(
        entry,
        fp32_flops_per_s=whole.fp32_flops_per_s,
        tensor_flops_per_s=made.tensor_flops_per_s,
        bandwidth_bytes_per_s=whole.bandwidth_bytes_per_s,
        source="",
    )
    assert same == expected


def test_where_all_shares_saturate_the_smallest_one_counts() -> None:
    whole = MeasuredShare(100.0, 100, 1e12, 1e13)
    flat = [MeasuredShare(float(sms), sms, 0.97e12, 1e12) for sms in (10, 20, 50)]
    assert saturation([*flat, whole], whole, 0.5) == 0.1
    rising = MeasuredShare(10.0, 10, 0.2e12, 1e12)
    assert saturation([rising, *flat[1:], whole], whole, 0.5) == pytest.approx(0.5)

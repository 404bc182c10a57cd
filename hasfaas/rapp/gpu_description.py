"""The description of one very GPU, from what was measured on it at several SM shares, and the data sheet of its kind.

Measured: SMs, bandwidth (triad), fp32 peak (fused multiply-adds), the shortest kernel, and from which share on the
bandwidth is saturated. From the data sheet: lanes, L2, memory, power class, and the tensor peak, times what this GPU reached
of its fp32 peak: both run at the same clock on the same SMs, so a slower clock, a missing SM or a slice shows in both.

Law: no figure is above what was measured. The roofline's bandwidth at a measured share is at most TOLERANCE above what that
share drew, unless that was less than its part of the whole. Not yet checked on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.description import DeviceDescription, describe

TOLERANCE = 0.05
"""A bandwidth this close to that of the whole GPU counts as saturated; runs of one GPU differ by a few percent."""
WHOLE_PERCENT = 100.0
# Of a GPU that the table does not list. Tensor peak over fp32 peak: what A10, A40, L4, L40S and RTX PRO 6000 have in common
# (3.9 to 4.0); data-centre cards have more (V100 8, A100 16, H100 15), so this is on the careful side for them.
TENSOR_RATIO_ASSUMED = 4.0
# fp32 lanes of an SM, from Volta on: 64 (sm_70, 72, 75, 80) or 128; the nearer one by ratio to what FMA showed.
_LANES = (64, 128)

_positive = attrs.validators.gt(0)


@attrs.frozen
class MeasuredShare:
    """What ran at an SM share, in percent as asked for: on `sms` SMs."""

    sm_percent: float = attrs.field(validator=[attrs.validators.gt(0.0), attrs.validators.le(WHOLE_PERCENT)])
    sms: int = attrs.field(validator=_positive)
    bandwidth_bytes_per_s: float = attrs.field(validator=_positive)
    fp32_flops_per_s: float = attrs.field(validator=_positive)


@attrs.frozen
class MeasuredGpu:
    """One GPU as measured; `name` is the driver's name of it, `note` says which one and when. Sizes are None if unknown."""

    name: str
    shares: tuple[MeasuredShare, ...]
    launch_s: float = attrs.field(validator=_positive)
    clock_hz: float = attrs.field(validator=_positive)
    l2_bytes: float | None = None
    memory_bytes: float | None = None
    note: str = ""


def describe_measured(gpu: MeasuredGpu) -> DeviceDescription:
    """The calibrated description; it keeps the name of the table's entry, by which trained laws know the GPU.

    Raises InvalidRequestError (BAD_PROBES) without a measurement of the whole GPU, (UNKNOWN_DEVICE) for a GPU that is not in
    the table and whose sizes were not measured.
    """
    whole = next((share for share in gpu.shares if share.sm_percent == WHOLE_PERCENT), None)
    if whole is None:
        raise InvalidRequestError(
            f"device={gpu.name!r} was probed at SM {[share.sm_percent for share in gpu.shares]} %, never as a whole: "
            "`hasfaas doctor --probe` measures it again",
            reason="BAD_PROBES",
        )
    sheet = _data_sheet(gpu.name)
    base = _from_sheet(sheet, whole) if sheet else _without_sheet(gpu, whole)
    return attrs.evolve(
        base,
        sms=whole.sms,
        fp32_flops_per_s=whole.fp32_flops_per_s,
        bandwidth_bytes_per_s=whole.bandwidth_bytes_per_s,
        l2_bytes=gpu.l2_bytes or base.l2_bytes,
        memory_bytes=gpu.memory_bytes or base.memory_bytes,
        launch_s=gpu.launch_s,
        saturation=saturation(gpu.shares, whole, base.saturation),
        source=f"measured{f' ({gpu.note})' if gpu.note else ''}; {base.source}",
    )


def saturation(shares: Sequence[MeasuredShare], whole: MeasuredShare, unknown: float) -> float:
    """The share of the SMs in (0, 1] from which on the bandwidth is saturated; `unknown` if less than the whole was never
    measured.

    The roofline lets the bandwidth rise in a straight line up to this share. It is the least share whose line stays below
    every point that is not yet saturated; where all are, the smallest share measured.
    """
    below = [share for share in shares if share.sms < whole.sms]
    if not below:
        return unknown
    full = whole.bandwidth_bytes_per_s
    smallest = min(share.sms for share in below) / whole.sms
    reached = [
        share.sms / whole.sms * full / share.bandwidth_bytes_per_s
        for share in below
        if share.bandwidth_bytes_per_s < (1.0 - TOLERANCE) * full
    ]
    return min(1.0, max([smallest, *reached]))


def _data_sheet(name: str) -> DeviceDescription | None:
    """The table's entry; a slice of a GPU is called `<GPU> MIG <profile>` and has that of the GPU."""
    try:
        return describe(name.partition(" MIG ")[0])
    except InvalidRequestError:
        return None


def _from_sheet(sheet: DeviceDescription, whole: MeasuredShare) -> DeviceDescription:
    reached = whole.fp32_flops_per_s / sheet.fp32_flops_per_s
    return attrs.evolve(
        sheet,
        tensor_flops_per_s=sheet.tensor_flops_per_s * reached,
        source=f"tensor peak: data sheet x {reached:.2f}, as fp32; {sheet.source}",
    )


def _without_sheet(gpu: MeasuredGpu, whole: MeasuredShare) -> DeviceDescription:
    if gpu.l2_bytes is None or gpu.memory_bytes is None:
        raise InvalidRequestError(
            f"device={gpu.name!r} is in no table and its L2 and memory were not measured: `hasfaas doctor --probe`",
            reason="UNKNOWN_DEVICE",
        )
    reached = whole.fp32_flops_per_s / (2.0 * whole.sms * gpu.clock_hz)
    return DeviceDescription(
        name=gpu.name,
        sms=whole.sms,
        lanes_per_sm=min(_LANES, key=lambda lanes: max(lanes / reached, reached / lanes)),
        fp32_flops_per_s=whole.fp32_flops_per_s,
        tensor_flops_per_s=TENSOR_RATIO_ASSUMED * whole.fp32_flops_per_s,
        bandwidth_bytes_per_s=whole.bandwidth_bytes_per_s,
        l2_bytes=gpu.l2_bytes,
        memory_bytes=gpu.memory_bytes,
        source=f"in no table: tensor peak assumed to be {TENSOR_RATIO_ASSUMED:g} x fp32, lanes by the clock",
    )

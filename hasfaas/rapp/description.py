"""What a device can do by its data sheet: the figures that the roofline needs, and a table of known GPUs.

Peaks are dense (no structured sparsity) at boost clock, without what power limits take away. `tensor_flops_per_s` is
that of bf16 or fp16 with fp32 accumulation; where a card has no tensor cores it is that of its vector units.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from hasfaas.core.errors import InvalidRequestError

_positive = attrs.validators.gt(0)


@attrs.frozen
class DeviceDescription:
    """One device. `low_power` marks cards of at most 75 W, which do not hold their boost clock.

    `launch_s` is what the shortest kernel takes on the device, without the host's part. `saturation` is the share of
    the SMs from which on the memory bandwidth is saturated (rapp.md 3.3: 0.5 in the median of LLaMA decode on A100).
    """

    name: str
    sms: int = attrs.field(validator=_positive)
    lanes_per_sm: int = attrs.field(validator=_positive)
    fp32_flops_per_s: float = attrs.field(validator=_positive)
    tensor_flops_per_s: float = attrs.field(validator=_positive)
    bandwidth_bytes_per_s: float = attrs.field(validator=_positive)
    l2_bytes: float = attrs.field(validator=_positive)
    memory_bytes: float = attrs.field(validator=_positive)
    launch_s: float = attrs.field(default=3e-6, validator=attrs.validators.ge(0))
    saturation: float = attrs.field(default=0.5, validator=[attrs.validators.gt(0.0), attrs.validators.le(1.0)])
    low_power: bool = False
    source: str = ""

    def peak_flops_per_s(self, element_bytes: int) -> float:
        """Of matrix products: tensor cores up to 2 bytes per element, else fp32 units (TF32 off)."""
        return self.tensor_flops_per_s if element_bytes <= 2 else self.fp32_flops_per_s


def _gpu(
    name: str,
    sms: int,
    lanes: int,
    fp32_tflops: float,
    tensor_tflops: float,
    bandwidth_gb: float,
    l2_mb: float,
    memory_gb: float,
    source: str,
    low_power: bool = False,
) -> DeviceDescription:
    return DeviceDescription(
        name=name,
        sms=sms,
        lanes_per_sm=lanes,
        fp32_flops_per_s=fp32_tflops * 1e12,
        tensor_flops_per_s=tensor_tflops * 1e12,
        bandwidth_bytes_per_s=bandwidth_gb * 1e9,
        l2_bytes=l2_mb * 2**20,
        memory_bytes=memory_gb * 1e9,
        low_power=low_power,
        source=source,
    )


_VOLTA = "NVIDIA V100 data sheet (Jan 2020); Volta architecture white paper (SMs, L2)"
_AMPERE = "NVIDIA A100 data sheet; A100 architecture white paper (SMs, L2)"
_HOPPER = "NVIDIA H100 data sheet; Hopper architecture white paper (SMs, L2)"
_GA102 = "GA102 architecture white paper (SMs, L2)"
_ADA = "Ada architecture white paper (SMs, L2)"

# name, SMs, lanes, fp32 and tensor TFLOP/s, GB/s, L2 MiB, memory GB. Written down from memory of the sources named, not
# copied from them. A test holds the cards that NeuSight (MIT) and AIConfigurator (Apache-2.0) also list against their
# devices.csv: these agree within 5 % but for P4 (NeuSight counts 40 SMs of 64 lanes) and L4 (it counts 60 SMs).
_TABLE = (
    _gpu("P4", 20, 128, 5.5, 5.5, 192, 2, 8, "NVIDIA Tesla P4 data sheet; Pascal white paper", low_power=True),
    _gpu("P100", 56, 64, 9.3, 18.7, 732, 4, 16, "NVIDIA Tesla P100 PCIe data sheet; Pascal P100 white paper"),
    _gpu("V100-PCIE-16GB", 80, 64, 14.0, 112, 900, 6, 16, _VOLTA),
    _gpu("V100-PCIE-32GB", 80, 64, 14.0, 112, 900, 6, 32, _VOLTA),
    _gpu("V100-SXM2-16GB", 80, 64, 15.7, 125, 900, 6, 16, _VOLTA),
    _gpu("V100-SXM2-32GB", 80, 64, 15.7, 125, 900, 6, 32, _VOLTA),
    _gpu("T4", 40, 64, 8.1, 65, 320, 4, 16, "NVIDIA T4 data sheet; Turing white paper", low_power=True),
    _gpu("A100-40", 108, 64, 19.5, 312, 1555, 40, 40, _AMPERE),
    _gpu("A100-SXM-40", 108, 64, 19.5, 312, 1555, 40, 40, _AMPERE + "; SXM"),
    _gpu("A100-80", 108, 64, 19.5, 312, 1935, 40, 80, _AMPERE + "; PCIe"),
    _gpu("A100-SXM-80", 108, 64, 19.5, 312, 2039, 40, 80, _AMPERE + "; SXM"),
    _gpu("A30", 56, 64, 10.3, 165, 933, 24, 24, "NVIDIA A30 data sheet; SMs, L2: product brief"),
    _gpu("A10", 72, 128, 31.2, 125, 600, 6, 24, "NVIDIA A10 data sheet; " + _GA102),
    _gpu("A40", 84, 128, 37.4, 149.7, 696, 6, 48, "NVIDIA A40 data sheet; " + _GA102),
    _gpu("RTX 3090", 82, 128, 35.6, 71, 936, 6, 24, _GA102),
    _gpu("RTX 4090", 128, 128, 82.6, 165.2, 1008, 72, 24, _ADA),
    _gpu("L4", 58, 128, 30.3, 121, 300, 48, 24, "NVIDIA L4 data sheet; " + _ADA, low_power=True),
    _gpu("L40S", 142, 128, 91.6, 362, 864, 96, 48, "NVIDIA L40S data sheet; " + _ADA),
    _gpu("H100-SXM", 132, 128, 66.9, 989.4, 3350, 50, 80, _HOPPER),
    _gpu("H100-PCIE", 114, 128, 51.2, 756, 2000, 50, 80, _HOPPER),
    _gpu("H200", 132, 128, 66.9, 989.4, 4800, 50, 141, "NVIDIA H200 data sheet; SMs, L2 as H100"),
    _gpu(
        "B200",
        148,
        128,
        80,
        2250,
        7700,
        126,
        180,
        "AIConfigurator 0.12.0 devices.csv and notes; fp32: HGX B200 data sheet",
    ),
    _gpu(
        "RTX PRO 6000",
        188,
        128,
        120,
        467.8,
        1792,
        128,
        96,
        "AIConfigurator 0.12.0 devices.csv, notes; fp32: data sheet",
    ),
)
DEVICES: Mapping[str, DeviceDescription] = MappingProxyType({entry.name: entry for entry in _TABLE})
# What people, nvidia-smi and the measured data call them, letters and digits alone.
_ALIASES = {
    "v100": "V100-SXM2-16GB",
    "p100pcie16gb": "P100",
    "a100": "A100-SXM-80",
    "a100sxm": "A100-SXM-80",
    "a100sxm480gb": "A100-SXM-80",
    "a100sxm440gb": "A100-SXM-40",
    "a100pcie40gb": "A100-40",
    "a10080gbpcie": "A100-80",
    "a100pcie80gb": "A100-80",
    "h100": "H100-SXM",
    "h10080gbhbm3": "H100-SXM",
    "h200sxm": "H200",
    "b200sxm": "B200",
    "rtxpro6000server": "RTX PRO 6000",
}


def describe(name: str) -> DeviceDescription:
    """The description of a GPU by name; case, blanks, hyphens and the maker's name in front do not matter.

    Raises InvalidRequestError (UNKNOWN_DEVICE) that lists the known names.
    """
    key = _letters(name)
    for maker in ("nvidia", "tesla", "geforce"):
        key = key.removeprefix(maker)
    found = _BY_KEY.get(_letters(_ALIASES.get(key, key)))
    if found is None:
        raise InvalidRequestError(
            f"device={name!r} is not known: give one of {', '.join(DEVICES)}, or cpu (measured on the spot)",
            reason="UNKNOWN_DEVICE",
        )
    return found


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


_BY_KEY = {_letters(name): entry for name, entry in DEVICES.items()}

"""The table of devices, the lookup by name, and the description of the CPU measured on the spot."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.cpu_description import measure_cpu
from hasfaas.rapp.description import DEVICES, DeviceDescription, describe


def test_every_entry_names_its_source_and_is_found_by_its_own_name() -> None:
    for name, entry in DEVICES.items():
        assert entry.source
        assert describe(name) is entry


@pytest.mark.parametrize(
    ("spoken", "name"),
    [
        ("v100", "V100-SXM2-16GB"),
        ("Tesla V100-PCIE-32GB", "V100-PCIE-32GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM-40"),
        ("nvidia l4", "L4"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("h200_sxm", "H200"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("RTX-4090", "RTX 4090"),
    ],
)
def test_usual_spellings(spoken: str, name: str) -> None:
    assert describe(spoken).name == name


@pytest.mark.parametrize("name", ["", "TPU", "V1000", "100"])
def test_an_unknown_device_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"RTX 4090.*cpu") as raised:
        describe(name)
    assert raised.value.reason == "UNKNOWN_DEVICE"


def test_peak_by_element_size() -> None:
    card = describe("A100-80")
    assert card.peak_flops_per_s(2) == card.tensor_flops_per_s
    assert card.peak_flops_per_s(4) == card.peak_flops_per_s(8) == card.fp32_flops_per_s


def test_entries_keep_the_order_of_magnitude_of_their_units() -> None:
    for entry in DEVICES.values():
        lanes = entry.sms * entry.lanes_per_sm
        clock_hz = entry.fp32_flops_per_s / (2 * lanes)
        assert 0.9e9 < clock_hz < 3e9, entry.name  # a wrong count of SMs or lanes shows here
        assert entry.tensor_flops_per_s >= entry.fp32_flops_per_s
        assert 1e11 < entry.bandwidth_bytes_per_s < 1e13
        assert 2**20 < entry.l2_bytes < entry.memory_bytes


def test_the_table_agrees_with_the_lists_of_neusight_and_aiconfigurator(data: Path) -> None:
    with (data / "gpu" / "neusight" / "devices.csv").open() as lines:
        for line in csv.DictReader(lines):
            card = describe(line["Device"])
            assert card.fp32_flops_per_s == pytest.approx(float(line["SingleFLOPs"]) * 1e9, rel=0.05), card.name
            assert card.bandwidth_bytes_per_s == pytest.approx(float(line["Mem_Bw"]) * 1e9, rel=0.05), card.name
            assert card.l2_bytes == float(line["L2Cache"]) * 2**20, card.name
            if card.name not in ("P4", "L4"):
                assert card.sms == int(line["Num_Sm"]), card.name
    with (data / "gpu" / "aiconfigurator" / "devices.csv").open() as lines:
        for line in csv.DictReader(lines):
            if line["gpu"] in ("b300_sxm", "a100_pcie"):  # the one is not described, the other is A100-80
                continue
            card = describe(line["gpu"])
            assert card.tensor_flops_per_s == pytest.approx(float(line["bfloat16_tc_flops"]), rel=0.05), card.name
            assert card.bandwidth_bytes_per_s == pytest.approx(float(line["mem_bw"]), rel=0.05), card.name


def test_the_cpu_is_measured() -> None:
    cpu = measure_cpu(2)
    assert isinstance(cpu, DeviceDescription)
    assert (cpu.name, cpu.sms) == ("cpu", 2)
    assert 1e8 < cpu.fp32_flops_per_s < 1e14
    assert 1e8 < cpu.bandwidth_bytes_per_s < 1e13
    assert cpu.peak_flops_per_s(2) == cpu.peak_flops_per_s(4)


def test_a_cpu_without_cores_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="cores=0"):
        measure_cpu(0)

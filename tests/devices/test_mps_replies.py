"""Replies of the MPS control program, as its documentation and transcripts of others show them."""

from __future__ import annotations

import pytest

from hasfaas.devices.mps_replies import (
    Partition,
    PartitionTable,
    ServerStatus,
    parse_partition,
    parse_partitions,
    parse_pids,
    parse_status,
    parse_version,
    refused,
)

GPU = "GPU-74d43ed3-cdf7-e667-3644-bf5b4f46ed65"
ID = "Dx4AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
OVER = "Failed to fulfill the requested SM partition of 28 chunks, error CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION"
DOCUMENTED = f"""GPU           Partition  free   used   free  used  clients
                         chunk  chunk  SM    SM
GPU-74d43ed3  -          0      10     0     80    -
GPU-74d43ed3  {ID} -     7      -      56    Yes
GPU-74d43ed3  B/x4A      -      3      -     24    No
"""
WITHOUT_DASHES = f"GPU Partition free used free used clients\nchunks SM\nGPU-aa 8 7 76 56\nGPU-aa {ID} 7 56 Yes\n"


@pytest.mark.parametrize(("reply", "pids"), [("7001\n", (7001,)), ("7001\n 7002", (7001, 7002)), ("", ())])
def test_processes_are_one_a_line(reply: str, pids: tuple[int, ...]) -> None:
    assert parse_pids(reply) == pids


def test_a_number_in_words_is_no_process() -> None:
    assert parse_pids("Server 7001 does not exist") == ()


@pytest.mark.parametrize(
    "reply",
    [
        f"{GPU}/{ID}",
        f"{GPU}/{ID}\n",
        f"Partition {GPU}/{ID} created",
        f"CUDA initialised.\nPartition {GPU}/{ID} created\n",
        f"SM partition 'large' created on device {GPU} (sm-count=34)\nCUDA_MPS_SM_PARTITION={GPU}/{ID}\n",
    ],
)
def test_all_forms_of_a_new_partition(reply: str) -> None:
    assert parse_partition(reply) == f"{GPU}/{ID}"


def test_an_identifier_keeps_its_own_slashes() -> None:
    assert parse_partition(f"Partition {GPU}/D/79e/DgwYMDAAAA created") == f"{GPU}/D/79e/DgwYMDAAAA"


def test_a_partition_of_a_mig_slice() -> None:
    assert parse_partition(f"MIG-0a1b2c3d-0000-0000-0000-000000000000/{ID}") is not None


@pytest.mark.parametrize("reply", [OVER, "", "Unknown command: sm_partition", f"Device {GPU} not found"])
def test_a_refused_partition_has_no_identifier(reply: str) -> None:
    assert parse_partition(reply) is None


def test_the_documented_table() -> None:
    table = parse_partitions(DOCUMENTED)
    assert table == PartitionTable(0, 10, (Partition(ID, 7, 56, True), Partition("B/x4A", 3, 24, False)))
    assert table.chunks == 10


def test_the_table_without_dashes() -> None:
    assert parse_partitions(WITHOUT_DASHES) == PartitionTable(8, 7, (Partition(ID, 7, 56, True),), 76)


def test_a_partition_that_does_not_tell_of_clients() -> None:
    found = parse_partitions(f"GPU-74d43ed3 - 3 7 24 56 -\nGPU-74d43ed3 {ID} - 7 - 56 -\n")
    assert found == PartitionTable(3, 7, (Partition(ID, 7, 56, None),), 24)


@pytest.mark.parametrize(
    ("reply", "sms"),
    [
        ("GPU-74d43ed3 - 10 0 92 92 -", 92),
        (f"GPU-74d43ed3 - 3 7 24 56 -\nGPU-74d43ed3 {ID} - 7 - 56 -", 80),
        (
            "GPU-1 - 0 10 0 80 -\nGPU-1 Dx4 - 5 - 40 Yes\nGPU-1 Cx4 - 3 - 24 Yes\nGPU-1 Bx4 - 2 - 28 Yes",
            92,
        ),
        ("GPU-1 - 10 0", 0),
    ],
)
def test_all_sms_are_those_free_and_those_of_the_partitions(reply: str, sms: int) -> None:
    """NVIDIA's examples; their column of used SMs has 92 where none is used, and 80 where 92 are."""
    table = parse_partitions(reply)
    assert table is not None and table.sms == sms


@pytest.mark.parametrize("reply", ["", "Unknown command: lspart", "GPU Partition free used\nchunk chunk\n"])
def test_no_gpu_is_no_table(reply: str) -> None:
    assert parse_partitions(reply) is None


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ("ACTIVE\n", ServerStatus.ACTIVE),
        ("Server 7001 status: FAULT", ServerStatus.FAULT),
        ("initializing", ServerStatus.INITIALIZING),
        ("INACTIVE", None),
        ("Server 7001 does not exist", None),
        ("", None),
    ],
)
def test_a_servers_status(reply: str, status: ServerStatus | None) -> None:
    assert parse_status(reply) is status


@pytest.mark.parametrize(
    ("reply", "version"), [("CUDA MPS Control binary version: 13010\n", "13010"), ("13010", "13010"), ("", "")]
)
def test_a_version(reply: str, version: str) -> None:
    assert parse_version(reply) == version


@pytest.mark.parametrize(
    ("reply", "said_no"),
    [
        ("", False),
        ("CUDA_SUCCESS", False),
        (f"Partition {GPU}/{ID} removed", False),
        (f"SM partition 'lane_1' deleted from device {GPU}", False),
        (f"Partition {ID} in use. Terminate all clients before removing.", True),
        ("CUDA_ERROR_NOT_FOUND", True),
        (OVER, True),
    ],
)
def test_only_the_text_tells_a_refusal(reply: str, said_no: bool) -> None:
    assert refused(reply) is said_no

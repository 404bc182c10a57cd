"""What a node agent takes out of Ray's books for its tables, and which devices it then has."""

from __future__ import annotations

import pytest

from hasfaas.backends.cluster.reservation import RayNode, Reservation, on_node, ray_node, reservation
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.settings import DeviceSettings

AUTO, CPU, SIM = DeviceSettings(), DeviceSettings(kind="cpu"), DeviceSettings(kind="sim", count=4)
PLAIN = RayNode("a", "plain", "10.0.0.1", cpus=8)
GPUS = RayNode("b", "gpu1", "10.0.0.2", cpus=16, gpus=4)
EMPTY = RayNode("c", "head", "10.0.0.3")


def _cuda(**options: object) -> DeviceSettings:
    return DeviceSettings(kind="cuda", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tables", "node", "expected"),
    [
        ((AUTO,), GPUS, Reservation(0, 4)),
        ((AUTO,), PLAIN, Reservation(8, 0)),
        ((AUTO,), EMPTY, None),
        ((CPU,), PLAIN, Reservation(8, 0)),
        ((CPU,), GPUS, Reservation(16, 0)),
        ((CPU,), EMPTY, None),
        ((DeviceSettings(kind="cpu", cores=3),), PLAIN, Reservation(3, 0)),
        ((DeviceSettings(kind="cpu", cores=30),), PLAIN, Reservation(8, 0)),
        ((SIM,), PLAIN, Reservation()),
        ((SIM,), EMPTY, Reservation()),
        ((DeviceSettings(kind="mine", options={"a": 1}),), EMPTY, Reservation()),
        ((_cuda(),), GPUS, Reservation(0, 1)),
        ((_cuda(count=2), _cuda(lanes=(50, 50))), GPUS, Reservation(0, 3)),
        ((_cuda(count=9),), GPUS, Reservation(0, 4)),
        ((_cuda(gpu=2),), GPUS, Reservation(0, 4)),
        ((_cuda(),), PLAIN, None),
        ((_cuda(), SIM), PLAIN, Reservation()),
        ((_cuda(count=2), CPU), GPUS, Reservation(16, 2)),
        ((SIM, SIM, DeviceSettings(kind="cpu", cores=2)), PLAIN, Reservation(2, 0)),
        ((DeviceSettings(kind="sim", node="gpu1"),), PLAIN, None),
        ((DeviceSettings(kind="sim", node="plain"),), PLAIN, Reservation()),
        (
            (DeviceSettings(kind="cuda", count=2, node="gpu1"), DeviceSettings(kind="cpu", node="plain")),
            GPUS,
            Reservation(0, 2),
        ),
    ],
)
def test_what_is_reserved(tables: tuple[DeviceSettings, ...], node: RayNode, expected: Reservation | None) -> None:
    assert reservation(tables, node) == expected


def test_auto_is_the_very_gpus_that_ray_gave() -> None:
    (first, second) = on_node((AUTO,), "gpu1", gpu_ids=("2", "GPU-77"), cores=0)
    assert (first.kind, first.gpu) == ("cuda", 2)
    assert (second.kind, second.gpu) == ("cuda", "GPU-77")


def test_auto_without_gpus_is_the_cores_that_ray_gave() -> None:
    assert on_node((AUTO,), "n", gpu_ids=(), cores=3) == (DeviceSettings(kind="cpu", cores=3),)


def test_a_number_of_gpus_becomes_those_given_and_keeps_its_options() -> None:
    tables = (_cuda(count=2, id="big", memory="4GiB", lanes=(50, 50)), _cuda(id="small"))
    found = on_node(tables, "gpu1", gpu_ids=("1", "3", "0"), cores=0)
    assert [(table.id, table.gpu, table.count) for table in found] == [("big0", 1, 1), ("big1", 3, 1), ("small", 0, 1)]
    assert [table.memory for table in found] == ["4GiB", "4GiB", None]
    assert [table.lanes for table in found] == [(50, 50), (50, 50), None]


def test_a_gpu_that_is_named_is_not_given_to_another_table() -> None:
    found = on_node((_cuda(), _cuda(gpu=0)), "gpu1", gpu_ids=("0", "1"), cores=0)
    assert [table.gpu for table in found] == [1, 0]


def test_more_gpus_than_ray_has_there_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"count=3 GPUs .* 2 are left \(4, 5\)"):
        on_node((_cuda(count=3),), "gpu1", gpu_ids=("4", "5"), cores=0)


def test_a_cpu_device_has_no_more_than_was_reserved_and_what_was_given_stays() -> None:
    given = DeviceSettings(kind="cpu", cores=1, memory="1GiB")
    assert on_node((given, SIM), "n", gpu_ids=(), cores=8) == (given, SIM)
    assert on_node((CPU,), "n", gpu_ids=(), cores=2) == (DeviceSettings(kind="cpu", cores=2),)
    assert on_node((CPU, _cuda()), "n", gpu_ids=(), cores=0) == ()


def test_tables_of_other_nodes_are_left_out() -> None:
    mine = DeviceSettings(kind="sim", node="n")
    assert on_node((DeviceSettings(kind="sim", node="m"), mine, SIM), "n", gpu_ids=(), cores=0) == (mine, SIM)


def test_a_bundle_names_only_what_is_taken() -> None:
    assert Reservation().bundle == {}
    assert Reservation(2, 0).bundle == {"CPU": 2}
    assert Reservation(2, 1).bundle == {"CPU": 2, "GPU": 1}


def test_a_node_of_rays() -> None:
    entry = {
        "NodeID": "ab12",
        "Alive": True,
        "NodeManagerAddress": "10.0.0.9",
        "NodeManagerHostname": "gpu9.example",
        "NodeName": "10.0.0.9",
        "Resources": {"CPU": 4.0, "GPU": 2.0, "memory": 1e9},
    }
    assert ray_node(entry) == RayNode("ab12", "gpu9.example", "10.0.0.9", 4, 2)
    assert ray_node(entry | {"NodeName": "left"}).name == "left"
    assert ray_node(entry | {"Resources": {}}).cpus == 0

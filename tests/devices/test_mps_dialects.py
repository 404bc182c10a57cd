"""Protocol 3 as NVIDIA's pages show it; protocol 2's replies are in test_mps_replies.py."""

from __future__ import annotations

import pytest

from hasfaas.devices.mps_dialects import V2, V3, Dialect
from hasfaas.devices.mps_replies import Partition, PartitionTable, ServerStatus

GPU = "GPU-74d43ed3-cdf7-e667-3644-bf5b4f46ed65"
ID = "Kp8AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
SPOKEN = V3(1000)
SERVER = "training,1000,48201,Ready,/run/nvidia-mps/training,GPU-abcd-1234,-\n"


V2_SAYS = f"""-d -S
-d
get_server_list
start_server -uid 7
get_server_status 5
get_client_list 5
terminate_client 5 9
sm_partition add {GPU} 4
sm_partition rm {GPU} {ID}
lspart
quit -t 5"""
V3_SAYS = f"""-d -p 3
-d -p 3
server list --format=csv,noheader
server create --uid=7
server list --format=csv,noheader
client list --all --format=csv,noheader
client terminate 9
sm-partition create lane_1 --server=uid_1000 --device={GPU} --chunks=4
sm-partition delete lane_1 --server=uid_1000 --device={GPU}
sm-partition list --server=uid_1000 --all --format=csv,noheader
-q"""


@pytest.mark.parametrize(("dialect", "commands"), [(V2(), V2_SAYS), (SPOKEN, V3_SAYS)], ids=["v2", "v3"])
def test_what_is_said(dialect: Dialect, commands: str) -> None:
    assert commands.split("\n") == [
        dialect.start(static=True),
        dialect.start(static=False),
        dialect.servers(),
        dialect.start_server(7),
        dialect.status(5),
        dialect.clients(5),
        dialect.terminate(5, 9),
        dialect.add(GPU, 4, "lane_1"),
        dialect.remove(GPU, ID, "lane_1"),
        dialect.partitions(),
        dialect.quit(5),
    ]


@pytest.mark.parametrize(
    ("reply", "servers"),
    [
        (SERVER, (48201,)),
        (f"{SERVER}uid_0,0,-,Stopped,/p,all,-\n", (48201,)),
        ("uid_0,0,0,Stopped,/p,all,-", ()),
        ("", ()),
        ("No servers, none at all", ()),
    ],
)
def test_servers_are_those_with_a_process(reply: str, servers: tuple[int, ...]) -> None:
    assert SPOKEN.read_servers(reply) == servers


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("Ready", ServerStatus.ACTIVE),
        ("active", ServerStatus.ACTIVE),
        ("Faulted", ServerStatus.FAULT),
        ("Recovering", ServerStatus.FAULT),
        ("Starting", ServerStatus.INITIALIZING),
        ("Not ready", ServerStatus.INITIALIZING),
        ("inactive", ServerStatus.INITIALIZING),
        ("", None),
    ],
)
def test_a_servers_status(word: str, status: ServerStatus | None) -> None:
    reply = f"other,1,7,Unknown,/p,all,-\n{SERVER.replace('Ready', word)}"
    assert SPOKEN.read_status(reply, 48201) is status


def test_a_server_that_is_not_listed_has_no_status() -> None:
    assert SPOKEN.read_status(SERVER, 5) is None and SPOKEN.read_status("no such server", 5) is None


def test_clients_by_their_processes() -> None:
    reply = "51023,training,0,default,python train.py\n51087,training,0,high_priority,python eval.py --on 0,1\n"
    assert SPOKEN.read_clients(reply) == (51023, 51087)
    assert SPOKEN.read_clients("") == SPOKEN.read_clients("No clients, none") == ()


def test_the_table_of_partitions() -> None:
    reply = f"training,{GPU},large,4,34,false,created,{ID}\ntraining,{GPU},-,1,8,-,unallocated,-\n"
    table = SPOKEN.read_partitions(reply)
    assert table == PartitionTable(1, 4, (Partition(ID, 4, 34),), 8)
    assert (table.chunks, table.sms) == (5, 42)


@pytest.mark.parametrize("reply", ["", "SERVER,DEVICE,NAME,CHUNKS,SM-COUNT,INCLUDE-REMAINDER,STATUS,VISIBLE-UUID"])
def test_no_row_is_no_table(reply: str) -> None:
    assert SPOKEN.read_partitions(reply) is None

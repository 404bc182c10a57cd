"""The local backend from outside: what starts, what ends, and what outlives the death of each process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hasfaas import InvalidRequestError, OverloadedError, UnavailableError
from hasfaas.core.errors import AuthError
from hasfaas.core.settings import GATEWAY_SOCKET, DeviceSettings
from hasfaas.sdk.client import Client
from hasfaas.wire.convert import payload_from_proto, payload_to_proto
from hasfaas.wire.payload import decode, encode_arguments
from hasfaas.wire.v1 import functions_pb2, functions_pb2_grpc
from tests.live import APPS, SUITE_APPS, Gateway, app, eventually, gateway

steady = app("steady")
verbs = app("verbs")
shares = app("shares")
streams = app("streams")


@pytest.fixture
def fresh() -> Iterator[Gateway]:
    """Folders for a gateway, and none running."""
    with gateway(start=False) as made:
        yield made


@pytest.fixture(scope="module")
def running_all_along() -> Iterator[Gateway]:
    with gateway() as made:
        yield made


@pytest.fixture
def shared(running_all_along: Gateway) -> Iterator[Gateway]:
    """A gateway that no test ends."""
    running_all_along.use()
    yield running_all_along
    running_all_along.delete()


def run(made: Gateway, script: Path, **options: Any) -> dict[str, Any]:
    """Runs a script of tests/apps in a process of its own; what it printed, and what it said on standard error."""
    done = subprocess.run(
        [sys.executable, str(script)], env=made.env, capture_output=True, text=True, timeout=60, **options
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return {**printed, "said": done.stderr}


def gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


# -- starting and ending ---------------------------------------------------------------------------------------------


def test_a_first_call_starts_a_gateway_and_says_so_once(fresh: Gateway) -> None:
    assert fresh.local.pid() is None
    assert verbs.add.remote(1) == 2
    assert verbs.add.remote(2) == 3
    [line] = fresh.said
    assert line.startswith("hasfaas: no gateway was running; started one")
    assert "\n" not in line
    assert fresh.status().embedded
    fresh.up()
    eventually(lambda: not fresh.status().embedded)


def test_its_doors_are_closed_to_others(fresh: Gateway) -> None:
    fresh.up()
    verbs.add.deploy()
    socket = fresh.settings.runtime_dir / GATEWAY_SOCKET
    assert socket.stat().st_mode & 0o777 == 0o600
    assert fresh.settings.runtime_dir.stat().st_mode & 0o777 == 0o700
    assert fresh.settings.state_dir.stat().st_mode & 0o777 == 0o700
    assert (fresh.settings.state_dir / "signing.key").stat().st_mode & 0o777 == 0o600
    [*made] = fresh.shm(fresh.pid())
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}


def test_a_runtime_folder_that_others_can_write_is_refused(fresh: Gateway) -> None:
    fresh.settings.runtime_dir.mkdir(mode=0o700, parents=True)
    fresh.settings.runtime_dir.chmod(0o777)
    with pytest.raises(AuthError, match="chmod 700"):
        verbs.add.remote(1)
    assert fresh.local.pid() is None


def test_many_first_calls_at_once_start_one_gateway(fresh: Gateway) -> None:
    clients = [Client(fresh.settings, announce=lambda _: None) for _ in range(6)]
    found: list[int] = []

    def ask(client: Client) -> None:
        client.backend.endpoint(lambda _: None)
        found.append(fresh.pid())

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert len(set(found)) == 1


def test_an_unused_embedded_gateway_ends_by_itself() -> None:
    with gateway(start=False, linger_s=0.2) as made:
        run(made, APPS / "script.py")
        family = made.family()
        assert len(family) >= 3
        eventually(lambda: gone(family))
        assert not made.shm(family[0].pid)


def test_down_lets_calls_finish_and_leaves_nothing(fresh: Gateway) -> None:
    fresh.up()
    steady.once.remote(0)
    family, pid = fresh.family(), fresh.pid()
    assert fresh.shm(pid)
    calls = [steady.once.spawn(i, ms=150) for i in range(4)]
    eventually(lambda: fresh.function("steady.once").calls.accepted == 5)
    assert fresh.local.down()
    assert [call.result(timeout_s=5)[0] for call in calls] == [0, 1, 2, 3]
    assert not fresh.local.down()
    eventually(lambda: gone(family))
    assert not fresh.shm(pid)
    assert not (fresh.settings.runtime_dir / GATEWAY_SOCKET).exists()


def test_what_was_deployed_and_sized_before_down_is_there_after_up() -> None:
    with gateway(DeviceSettings(kind="sim"), DeviceSettings(kind="cpu", cores=1)) as made:
        shares.spin.deploy()
        shares.spin.scale(quota=40, sm=50, replicas=2)
        assert list(streams.count.stream(2)) == [0, 1]
        made.local.down()
        made.up()
        assert {one.name for one in made.status().functions} == {"shares.spin", "streams.count"}
        arguments = encode_arguments((1,), {})
        assert made.client.run(made.client.call_named("shares.spin", arguments, 20.0)) > 0
        replicas = eventually(lambda: made.replicas("shares.spin") if len(made.replicas("shares.spin")) == 2 else [])
        assert {one.quota_percent for one in replicas} == {40.0}
        assert {one.sm_asked_percent for one in replicas} == {50.0}
        assert shares.spin.remote(1) in {one.pid for one in replicas}
        assert list(streams.count.stream(3)) == [0, 1, 2]


# -- death -----------------------------------------------------------------------------------------------------------


def test_killed_replicas_lose_no_call_of_an_idempotent_function(shared: Gateway) -> None:
    steady.again.deploy()
    steady.again.scale(replicas=2)
    killed = []
    results = []
    for index, result in enumerate(steady.again.map(range(400), max_in_flight=16)):
        results.append(result)
        if index in (60, 150, 240, 330):
            pid = result[1] if psutil.pid_exists(result[1]) else shared.replicas("steady.again")[0].pid
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    assert [x for x, _ in results] == list(range(400))
    assert len({pid for _, pid in results}) > len(killed)
    counts = shared.function("steady.again").calls
    assert (counts.completed, counts.failed) == (400, 0)
    assert counts.redispatched >= len(killed)


def test_a_call_that_may_not_run_twice_fails_with_its_replica(shared: Gateway) -> None:
    steady.once.remote(0)
    calls = [steady.once.spawn(i, ms=20) for i in range(40)]
    assert calls[0].result(timeout_s=20)[0] == 0
    os.kill(shared.replica("steady.once").pid, signal.SIGKILL)
    lost = 0
    for i, call in enumerate(calls):
        try:
            assert call.result(timeout_s=20)[0] == i
        except UnavailableError as exc:
            assert exc.reason == "EXECUTOR_CRASHED"
            assert "signal 9" in str(exc)
            assert "idempotent=True" in str(exc)
            lost += 1
    assert 1 <= lost <= 2, "only what the replica held is lost: one running and one sent ahead"


def test_a_killed_gateway_leaves_nothing_behind(fresh: Gateway, tmp_path: Path) -> None:
    fresh.up()
    steady.once.remote(0)
    steady.again.deploy()
    steady.again.scale(replicas=2)
    verbs.add.deploy()
    app("shared").Weights.deploy()
    calls = [steady.once.spawn(i, ms=200) for i in range(5)]
    pid = fresh.pid()
    family = fresh.kill()
    assert len(family) >= 7
    eventually(lambda: gone(family), timeout_s=5)
    for call in calls:
        with pytest.raises(UnavailableError) as caught:
            call.result(timeout_s=20)
        assert caught.value.reason == "GATEWAY_LOST"
    assert fresh.shm(pid)
    assert steady.once.remote(7)[0] == 7
    assert not fresh.shm(pid)
    assert fresh.shm(fresh.pid())


def test_even_a_replica_that_never_lets_go_ends_with_the_gateway(fresh: Gateway, tmp_path: Path) -> None:
    fresh.up()
    trace = tmp_path / "pid"
    steady.stuck.spawn(str(trace))
    pid = int(eventually(lambda: trace.read_text() if trace.exists() else ""))
    stuck = psutil.Process(pid)
    fresh.kill()
    eventually(lambda: gone([stuck]), timeout_s=5)


@pytest.mark.parametrize("end", ["replica dies", "replica retires", "gateway dies"])
def test_what_user_code_started_ends_with_its_replica(fresh: Gateway, end: str) -> None:
    fresh.up()
    helper = psutil.Process(steady.helped.remote())
    assert helper.name() == "sleep"
    if end == "replica dies":
        os.kill(fresh.replica("steady.helped").pid, signal.SIGKILL)
    elif end == "replica retires":
        steady.helped.scale(replicas=0)
    else:
        fresh.kill()
    eventually(lambda: gone([helper]), timeout_s=5)


def test_idempotent_calls_survive_the_gateway(fresh: Gateway) -> None:
    fresh.up()
    assert steady.again.remote(-1)[0] == -1
    calls = [steady.again.spawn(i, ms=20) for i in range(60)]
    assert calls[5].result(timeout_s=20)[0] == 5
    before = fresh.pid()
    fresh.kill()
    assert [call.result(timeout_s=30)[0] for call in calls] == list(range(60))
    assert fresh.pid() != before
    assert len(fresh.said) == 1


def test_a_killed_zygote_costs_nothing_but_its_own_start(fresh: Gateway) -> None:
    fresh.up()
    pid = steady.once.remote(0)[1]
    zygote = psutil.Process(pid).parent()
    assert zygote is not None
    zygote.kill()
    assert steady.once.remote(1)[1] == pid
    steady.once.scale(replicas=2)
    assert len(fresh.replicas("steady.once")) == 2
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pid not in {one.pid for one in fresh.replicas("steady.once")})
    eventually(lambda: len(fresh.replicas("steady.once")) == 2)
    assert steady.once.remote(2)[0] == 2


def test_a_client_that_dies_takes_its_calls_back(shared: Gateway, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    code = (
        f"import sys; sys.path.insert(0, {str(SUITE_APPS)!r}); import verbs\n"
        f"verbs.touch.remote({str(trace)!r}, 'first')\n"
        f"calls = [verbs.touch.spawn({str(trace)!r}, f'w{{i}}', wait_s=0.3) for i in range(10)]\n"
        "calls[0].result()\n"
        "import os; os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=shared.env, timeout=60, check=True)
    assert verbs.touch.remote(str(trace), "last") == "last"
    words = trace.read_text().split()
    assert "last" in words
    assert len(words) <= 5
    assert shared.function("verbs.touch").calls.cancelled >= 6


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    with gateway(max_queue=4) as made:
        steady.once.remote(0)
        calls = [steady.once.spawn(i, ms=100) for i in range(12)]
        refused = 0
        for i, call in enumerate(calls):
            try:
                assert call.result(timeout_s=20)[0] == i
            except OverloadedError as exc:
                assert exc.retry_after_s is not None
                assert exc.retry_after_s > 0
                assert "at most 4 may" in str(exc)
                refused += 1
        assert 4 <= refused <= 8
        assert made.function("steady.once").calls.refused == refused
        assert steady.once.remote(1)[0] == 1


def test_a_cold_start_of_a_device_is_waited_for() -> None:
    with gateway(DeviceSettings(kind="sim", cold_start_s=0.6)):
        began_s = time.monotonic()
        assert verbs.add.remote(1) == 2
        assert time.monotonic() - began_s > 0.6


def test_any_grpc_client_can_call(shared: Gateway) -> None:
    """Health, reflection and one unary call, with nothing of our SDK but the messages."""
    verbs.add.deploy()
    address = f"unix:{shared.settings.runtime_dir / GATEWAY_SOCKET}"
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        [listed] = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        names = {service.name for service in listed.list_services_response.service}
        assert {"hasfaas.wire.v1.FunctionService", "grpc.health.v1.Health"} <= names
        stub = functions_pb2_grpc.FunctionServiceStub(channel)
        payload = payload_to_proto(encode_arguments((20,), {"y": 1}))
        result = stub.Invoke(functions_pb2.InvokeRequest(function="add", arguments=payload)).result
        assert decode(payload_from_proto(result), allow_pickle=False) == 21
        with pytest.raises(grpc.RpcError) as caught:
            stub.Invoke(functions_pb2.InvokeRequest(function="absent", arguments=payload))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        unwanted = functions_pb2.InvokeRequest(function="add", arguments=payload)
        with pytest.raises(grpc.RpcError) as late:
            stub.Invoke(unwanted, timeout=0.000001)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_logs_are_streamed(shared: Gateway) -> None:
    failures = app("failures")
    failures.wrong.remote("print")
    with grpc.insecure_channel(f"unix:{shared.settings.runtime_dir / GATEWAY_SOCKET}") as channel:
        stub = functions_pb2_grpc.FunctionServiceStub(channel)
        lines = list(stub.StreamLogs(functions_pb2.StreamLogsRequest(name="failures.wrong", tail=3)))
    assert [one.line for one in lines][-2:] == ["an error line", "straight to the descriptor"]
    assert lines[0].replica_id == shared.replica("failures.wrong").replica_id


def test_what_dead_clients_left_in_shared_memory_is_swept(shared: Gateway) -> None:
    code = (
        f"import sys, os; sys.path.insert(0, {str(SUITE_APPS)!r}); import verbs, numpy\n"
        "assert verbs.add.remote(numpy.zeros(1 << 20))[0] == 1; print(os.getpid(), flush=True); os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=shared.env, timeout=60, capture_output=True, text=True)
    left = shared.shm(int(done.stdout))
    for path in left:
        os.utime(path, (0, 0))
    eventually(lambda: not shared.shm(int(done.stdout)))


# -- scripts ---------------------------------------------------------------------------------------------------------


def test_two_runs_of_one_script_are_one_version(shared: Gateway, tmp_path: Path) -> None:
    first = run(shared, APPS / "script.py", cwd=tmp_path)
    pid = shared.replica("script.scaled").pid
    second = run(shared, Path("script.py"), cwd=APPS)
    assert first == second
    assert first["plain"] == first["remote"] == [3, 6, 9, 12]
    assert shared.replica("script.scaled").pid == pid
    assert app("script").scaled.version == first["version"]


def test_an_app_of_several_files_works_from_any_folder(shared: Gateway, tmp_path: Path) -> None:
    folder = APPS / "two_files"
    elsewhere = run(shared, folder / "main.py", cwd=tmp_path)
    assert elsewhere["plain"] == elsewhere["remote"] == "IT IS 18"
    assert run(shared, Path("main.py"), cwd=folder) == elsewhere


def test_files_in_the_working_directory_shadow_nothing(fresh: Gateway, tmp_path: Path) -> None:
    for name in ("logging", "numpy", "grpc", "helper"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    assert run(fresh, APPS / "script.py", cwd=tmp_path)["remote"] == [3, 6, 9, 12]


def test_an_interrupted_script_takes_its_call_back(shared: Gateway, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    verbs.touch.deploy()
    code = (
        f"import sys; sys.path.insert(0, {str(SUITE_APPS)!r}); import verbs\n"
        f"others = [verbs.touch.spawn({str(trace)!r}, 'other') for _ in range(3)]\n"
        f"verbs.touch.remote({str(trace)!r}, 'mine', wait_s=1)\n"
    )
    script = subprocess.Popen([sys.executable, "-c", code], env=shared.env, stderr=subprocess.PIPE, text=True)
    eventually(lambda: trace.exists() and "mine" in trace.read_text())
    script.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in script.communicate(timeout=20)[1]
    eventually(lambda: shared.function("verbs.touch").calls.cancelled >= 1)
    assert verbs.touch.remote(str(trace), "last") == "last"


def test_a_script_whose_configuration_has_a_typo_is_told(fresh: Gateway, tmp_path: Path) -> None:
    (tmp_path / "hasfaas.toml").write_text("[local]\nwindow = 100\n")
    done = subprocess.run(
        [sys.executable, str(APPS / "script.py")], env=fresh.env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "InvalidRequestError" in last
    assert "local.window" in last
    assert "hasfaas.toml" in last
    assert fresh.local.pid() is None


CHILDREN = """
import multiprocessing, sys
sys.path.insert(0, {apps!r})
import verbs

def work(i):
    return verbs.add.remote(i)

if __name__ == "__main__":
    if {first!r}:
        assert verbs.add.remote(1) == 2
    with multiprocessing.get_context({start!r}).Pool(2) as pool:
        print(pool.map(work, range(6), chunksize=1))
"""


@pytest.mark.parametrize(("start", "first"), [("spawn", True), ("fork", False), ("fork", True)])
def test_calls_in_child_processes(shared: Gateway, tmp_path: Path, start: str, first: bool) -> None:
    script = tmp_path / "children.py"
    script.write_text(CHILDREN.format(apps=str(SUITE_APPS), start=start, first=first))
    done = subprocess.run([sys.executable, str(script)], env=shared.env, capture_output=True, text=True, timeout=60)
    if start == "fork" and first:
        assert "UnavailableError: this process was forked" in done.stderr
    else:
        assert done.stdout.strip() == "[1, 2, 3, 4, 5, 6]", done.stderr


# -- functions that call functions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "argument", "result"), [("outer", 3, 8), ("gathered", 4, 10), ("mapped", 4, 10), ("spawned", 3, 4)]
)
def test_a_function_calls_another_in_the_same_lane(shared: Gateway, name: str, argument: int, result: int) -> None:
    nested = app("nested")
    assert getattr(nested, name).remote(argument) == result
    assert nested.inner.remote(1) == 2
    assert {one.name for one in shared.status().functions} == {f"nested.{name}", "nested.inner"}


def test_what_a_nested_call_raises_comes_back_as_its_type(shared: Gateway) -> None:
    nested = app("nested")
    with pytest.raises(ValueError, match="-1 is negative") as caught:
        nested.outer.remote(-1)
    assert not isinstance(caught.value, InvalidRequestError)


def test_status_is_quick_to_tell_how_long_it_runs(shared: Gateway) -> None:
    first = shared.status()
    time.sleep(0.05)
    second = shared.status()
    assert second.uptime_s > first.uptime_s
    assert second.pid == shared.pid()

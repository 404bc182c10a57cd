"""A fake MPS: an `nvidia-cuda-mps-control` on PATH that speaks the documented protocols, and the client's side of it.

`install` writes the command; `MpsControl` and a keeper then run it as they would run NVIDIA's. `-d` starts a process that
lives until `quit` (or a signal) ends it; what it knows lies in its pipe directory, under a lock. A stand-in for CUDA calls
`connect` where CUDA would initialise, and is refused where CUDA would be. Every command is written to a transcript, in
order; partitions and servers have numbers that repeat from run to run.

It proves parsing, order and environment. It says nothing about NVIDIA: where a reply's text is not documented, it is made
up, and said so below. Of protocol 3 the lists, the new partition and "Ready" are documented; words for other states, and
that a refusal ends with status 1, are made up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "nvidia-cuda-mps-control"
PID_FILE = f"{COMMAND}.pid"
FIRST_SERVER = 7001
MAX_CLIENTS = 48
NO_DAEMON = "Cannot find MPS control daemon process"

# The numbers of CUDA's runtime API (cudaError_t), with the names of the driver API where only those are documented.
INVALID_VALUE = 1
CONNECTION_FAILED = 805
SERVER_NOT_READY = 807
MAX_CLIENTS_REACHED = 808
CLIENT_TERMINATED = 810
INVALID_RESOURCE_CONFIGURATION = 914

Json = dict[str, Any]


class Settings(NamedTuple):
    """What the GPU, the driver and the daemon are like. `add_form` is "id" or "created": the two replies of `sm_partition
    add`. An H100 has 132 SMs and 15 chunks of 8: 12 SMs belong to no chunk. With `isolates` a fault reaches only the clients
    of its partition. `unconfined`: a client that finds no daemon runs on the whole GPU, as the manual page says; else it is
    refused. `protocols` are those that it speaks. `add_live`: it makes partitions while it has clients; None: as NVIDIA's
    page of protocol 3 says (no), and in 2 yes. `remainder`: SMs beyond whole chunks go to the partition that takes the last
    chunk, as in NVIDIA's example."""

    sms: int = 132
    chunk: int = 8
    chunks: int = 15
    version: str = "13010"
    static_ok: bool = True
    add_live: bool | None = None
    add_form: str = "created"
    isolates: bool = False
    unconfined: bool = False
    protocols: Sequence[int] = (2,)
    remainder: bool = False


class Refused(Exception):
    """CUDA did not start in a client. `code` is the number of the runtime API."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Client(NamedTuple):
    """What a client was granted: SMs, and bytes of device memory (None: no limit)."""

    sms: int
    memory_limit: int | None = None


# -- what a test calls ---------------------------------------------------------------------------------------------------


def install(
    folder: Path,
    *,
    sms: int = 132,
    chunk: int = 8,
    chunks: int = 15,
    version: str = "13010",
    static_ok: bool = True,
    add_live: bool | None = None,
    add_form: str = "created",
    isolates: bool = False,
    unconfined: bool = False,
    protocols: Sequence[int] = (2,),
    remainder: bool = False,
) -> dict[str, str]:
    """Writes the command into `folder`/bin; the environment that a process needs to find it."""
    assert chunks * chunk <= sms, f"{chunks} chunks of {chunk} are more than {sms} SMs"
    settings = Settings(
        sms, chunk, chunks, version, static_ok, add_live, add_form, isolates, unconfined, protocols, remainder
    )
    programs = folder / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings._asdict()))
    (folder / "transcript.jsonl").touch()
    script = programs / COMMAND
    # Imported, not run: then Python need not compile it each time.
    script.write_text(
        f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"from pathlib import Path\nfrom tests.fakes.mps_daemon import main\n"
        f"sys.exit(main(Path({str(folder)!r}), sys.argv[1:]))\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}", "FAKE_MPS": str(folder)}


def settings_of(folder: Path) -> Settings:
    """What it is like now."""
    return Settings(**_read(folder / "settings.json"))


def change(folder: Path, **changes: object) -> None:
    """Changes some settings of an installed one."""
    _write(folder / "settings.json", {**_read(folder / "settings.json"), **changes})


def fail(
    folder: Path,
    *,
    refuse_add: int | None = None,
    refuse_remove: int | None = None,
    not_ready: int | None = None,
    slow_s: float | None = None,
    deaf_quit: bool | None = None,
    dead_server: bool = False,
    dead_daemon: bool = False,
    fault: bool = False,
) -> None:
    """Arms failures: the next n partitions that are added or removed, or the next n clients, are refused; every command takes
    `slow_s` more; `quit` does nothing. Or makes one happen now: every server dies, the daemons are killed, or every client is
    hit by a fatal fault. What is armed stays until it is set again."""
    armed = {"refuse_add": refuse_add, "refuse_remove": refuse_remove, "not_ready": not_ready, "slow_s": slow_s}
    given = {name: value for name, value in {**armed, "deaf_quit": deaf_quit}.items() if value is not None}
    with _locked(folder):
        _write(folder / "armed.json", {**_read(folder / "armed.json"), **given})
        for pipe in _pipes(folder):
            state = _read(pipe / "state.json")
            if dead_server:
                _lose_servers(state)
            if fault:
                for server in state["servers"].values():
                    _strike(server, list(server["clients"]))
            _settle(state)
            _write(pipe / "state.json", state)
    if dead_daemon:
        for pipe in _pipes(folder):
            pid = _pid(pipe)
            if pid:
                os.kill(pid, signal.SIGKILL)
                _until_gone(pid)


def transcript(folder: Path, *, queries: bool = True) -> list[str]:
    """The commands in order, "-d -S" among them. Without `queries` only those that change something: how often somebody
    looks depends on the machine's load."""
    commands = [str(entry["command"]) for entry in records(folder) if "command" in entry]
    asked = ("get_", "lspart", "ps", "-v", "server list", "client list", "sm-partition list")
    return commands if queries else [c for c in commands if not c.startswith(asked)]


def records(folder: Path) -> list[Json]:
    """Everything that happened, in order: {"command", "reply", "pipe"}, with "environ" where a daemon was to start; and
    {"client", "granted" or "refused", "environ"} where a client came. Of an environment CUDA's variables are kept."""
    return [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]


def daemons(folder: Path) -> list[int]:
    """The daemons that live."""
    return [pid for pipe in _pipes(folder) if (pid := _pid(pipe))]


def stop_all(folder: Path) -> None:
    """Kills every daemon that was started, also one whose folder has gone: for the end of a test that may have failed."""
    for pid in map(int, _lines(folder / "started")):
        if _runs(pid) and COMMAND.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            _until_gone(pid)


# -- what a stand-in for CUDA calls --------------------------------------------------------------------------------------


def connect(environ: Mapping[str, str], pid: int) -> Client:
    """CUDA starts in process `pid`, which must live. Without a pipe directory it is no MPS client and has the whole GPU.
    Raises Refused."""
    folder = Path(environ["FAKE_MPS"])
    settings = settings_of(folder)
    if "CUDA_MPS_PIPE_DIRECTORY" not in environ:
        return Client(settings.sms)
    pipe = Path(environ["CUDA_MPS_PIPE_DIRECTORY"])
    with _locked(folder):
        seen = {
            name: value for name, value in sorted(environ.items()) if name.startswith(("CUDA_MPS_", "CUDA_VISIBLE"))
        }
        try:
            granted = _connect(folder, pipe, environ, pid, settings)
        except Refused as exc:
            _note(folder, {"client": pid, "refused": exc.code, "environ": seen})
            raise
        _note(folder, {"client": pid, "granted": granted._asdict(), "environ": seen})
    return granted


def leave(environ: Mapping[str, str], pid: int) -> None:
    """The client's context is gone. Harmless for one that is no client."""
    with _server_of(environ, pid) as server:
        if server is not None:
            del server["clients"][str(pid)]


def fault(environ: Mapping[str, str], pid: int) -> None:
    """This client caused a fatal fault: it and every client within its blast radius are hit. The server takes no new client
    until all of them have left."""
    with _server_of(environ, pid) as server:
        assert server is not None, f"{pid} is no client"
        isolates = settings_of(Path(environ["FAKE_MPS"])).isolates
        partition = server["clients"][str(pid)]["partition"]
        contained = isolates and partition is not None
        hit = [c for c, seat in server["clients"].items() if not contained or seat["partition"] == partition]
        _strike(server, hit, contained=contained)


def faulted(environ: Mapping[str, str], pid: int) -> bool:
    """Whether the client was hit by a fault (its own or another's), or lost its server."""
    return _mark(environ, pid) in ("faulted", "lost")


def ended(environ: Mapping[str, str], pid: int) -> bool:
    """Whether `terminate_client` ended it: CUDA says CLIENT_TERMINATED from then on."""
    return _mark(environ, pid) == "ended"


def _mark(environ: Mapping[str, str], pid: int) -> str | None:
    if "CUDA_MPS_PIPE_DIRECTORY" not in environ:
        return None
    with _locked(Path(environ["FAKE_MPS"])):
        pipe = Path(environ["CUDA_MPS_PIPE_DIRECTORY"])
        mark: str | None = _read(pipe / "state.json").get("marks", {}).get(str(pid))
        return mark or (None if _pid(pipe) else "lost")


@contextlib.contextmanager
def _server_of(environ: Mapping[str, str], pid: int) -> Iterator[Json | None]:
    """The server that `pid` is a client of, to be changed."""
    pipe = Path(environ.get("CUDA_MPS_PIPE_DIRECTORY", "/nowhere"))
    with _locked(Path(environ["FAKE_MPS"])):
        state = _read(pipe / "state.json")
        yield next((s for s in state.get("servers", {}).values() if str(pid) in s["clients"]), None)
        if state:
            state["marks"].update(_marks_of(state))
            _settle(state)
            _write(pipe / "state.json", state)


def _connect(folder: Path, pipe: Path, environ: Mapping[str, str], pid: int, settings: Settings) -> Client:
    if not _pid(pipe):
        if settings.unconfined:
            return Client(settings.sms)
        raise Refused(CONNECTION_FAILED, "MPS client failed to connect to the MPS control daemon")
    if _spend(folder, "not_ready"):
        raise Refused(SERVER_NOT_READY, "MPS server is not ready to accept new MPS client requests")
    state = _read(pipe / "state.json")
    _settle(state)
    server = _server(state)
    if server["status"] != "ACTIVE":
        raise Refused(SERVER_NOT_READY, "MPS server is not ready to accept new MPS client requests")
    if len(server["clients"]) >= MAX_CLIENTS:
        raise Refused(MAX_CLIENTS_REACHED, "MPS server has reached its maximum of clients")
    partition, sms = (
        _partition_of(state, environ, settings)
        if state["static"] or state["partitions"]
        else (None, _capped(environ, settings.sms))
    )
    granted = Client(sms, _memory_limit(environ))
    server["clients"][str(pid)] = {"partition": partition}
    state["marks"].pop(str(pid), None)
    _write(pipe / "state.json", state)
    return granted


def _partition_of(state: Json, environ: Mapping[str, str], settings: Settings) -> tuple[str, int]:
    wanted = environ.get("CUDA_MPS_SM_PARTITION", "")
    uuid, _, partition = wanted.partition("/")
    if uuid != state["gpu"] or partition not in state["partitions"]:
        raise Refused(
            INVALID_RESOURCE_CONFIGURATION, f"no SM partition {wanted!r}: CUDA_MPS_SM_PARTITION must name one"
        )
    return partition, _sms_of(state, partition, settings)


def _capped(environ: Mapping[str, str], sms: int) -> int:
    """SMs under an active thread percentage: rounded up to whole ones."""
    if "CUDA_MPS_SM_PARTITION" in environ:
        raise Refused(INVALID_RESOURCE_CONFIGURATION, "CUDA_MPS_SM_PARTITION without static partitioning")
    text = environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "100")
    try:
        percent = float(text)
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise Refused(INVALID_VALUE, f"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE={text!r} is no percentage")
    return max(1, math.ceil(sms * percent / 100 - 1e-9))


def _memory_limit(environ: Mapping[str, str]) -> int | None:
    text = environ.get("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT")
    if text is None:
        return None
    device, _, size = text.partition("=")
    if device != "0" or not size[:-1].isdigit() or size[-1] not in "MG":
        raise Refused(INVALID_VALUE, f"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT={text!r} is not of the form 0=512M")
    return int(size[:-1]) << {"M": 20, "G": 30}[size[-1]]


# -- the control program -------------------------------------------------------------------------------------------------


def main(folder: Path, arguments: Sequence[str]) -> int:
    """One run of the command: an option, or the commands on standard input. The exit status is 0 whenever the daemon could
    be talked to, also where it refused (manual page of nvidia-cuda-mps-control)."""
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    if arguments and arguments[0] == "--serve":
        return _serve(pipe)
    slow_s = _read(folder / "armed.json").get("slow_s", 0)
    if slow_s:
        time.sleep(slow_s)
    if list(arguments) == ["-q"] or (arguments and not arguments[0].startswith("-")):
        return _verb(folder, pipe, list(arguments))
    if arguments:
        return _option(folder, pipe, list(arguments))
    for line in sys.stdin.read().splitlines():
        with _locked(folder):
            reply = None
            if _pid(pipe):
                # Made up: what a daemon of 3 says to the shell of 2.
                shell = _read(pipe / "state.json")["protocol"] == 2
                reply = _answer(folder, pipe, line.split()) if shell else "Unknown command"
            _note(folder, {"command": line, "reply": reply, "pipe": str(pipe)})
        if reply is None:
            print(NO_DAEMON)
            return 1
        if reply:
            print(reply)
    return 0


def _option(folder: Path, pipe: Path, arguments: list[str]) -> int:
    settings = settings_of(folder)
    entry: Json = {"command": " ".join(arguments), "pipe": str(pipe)}
    code, reply = 1, f"{COMMAND}: invalid option"
    with _locked(folder):
        if arguments == ["-v"]:
            code, reply = 0, f"CUDA MPS Control binary version: {settings.version}"
        elif "-d" in arguments and _knows(settings, arguments):
            entry["environ"] = _cuda_variables(os.environ)
            code, reply = (1, "An instance of this daemon is already running") if _pid(pipe) else (0, "")
        _note(folder, {**entry, "reply": reply})
        if "environ" in entry and code == 0:
            _launch(folder, pipe, static="-S" in arguments, protocol=_chosen(arguments))
    if reply:
        print(reply)
    return code


def _knows(settings: Settings, arguments: list[str]) -> bool:
    """Whether it can be started so. A driver of protocol 2 alone does not know -p, one of 3 has no -S."""
    protocol = _chosen(arguments)
    if protocol not in settings.protocols or ("-p" in arguments and 3 not in settings.protocols):
        return False
    return "-S" not in arguments or (protocol == 2 and settings.static_ok)


def _chosen(arguments: list[str]) -> int:
    """The environment takes precedence."""
    option = arguments[arguments.index("-p") + 1] if "-p" in arguments else "2"
    return int(os.environ.get("CUDA_MPS_PROTOCOL_VERSION", option))


def _launch(folder: Path, pipe: Path, *, static: bool, protocol: int) -> None:
    before = _read(pipe / "state.json") or {"servers": {}, "marks": {}, "next": FIRST_SERVER, "cut": 0}
    _lose_servers(before)
    fresh = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "static": static, "protocol": protocol}
    _write(pipe / "state.json", {**before, **fresh, "percent": 100.0, "partitions": {}, "names": {}})
    with (folder / "pipes").open("a") as known:
        known.write(f"{pipe}\n")
    import subprocess  # here, since most commands start nothing

    quiet = subprocess.DEVNULL
    program = folder / "bin" / COMMAND
    daemon = subprocess.Popen([program, "--serve"], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    while not _pid(pipe):
        assert daemon.poll() is None, "the fake daemon did not start"
        time.sleep(0.005)
    with (folder / "started").open("a") as known:
        known.write(f"{daemon.pid}\n")


def _serve(pipe: Path) -> int:
    """The daemon: it only lives, since its commands work on its state under the lock."""

    def end(*_: object) -> None:
        (pipe / PID_FILE).unlink(missing_ok=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    (pipe / PID_FILE).write_text(f"{os.getpid()}\n")
    while True:
        signal.pause()


def _answer(folder: Path, pipe: Path, words: list[str]) -> str:
    """The reply to one command. Changes the state."""
    if words[:1] == ["quit"]:
        return _quit(folder, pipe)
    state = _read(pipe / "state.json")
    _settle(state)
    answers: dict[tuple[str, int], Callable[[], str]] = {
        ("get_server_list", 1): lambda: "\n".join(sorted(state["servers"])),
        ("get_server_status", 2): lambda: str(_of(state, words[1], "status")),
        ("get_client_list", 2): lambda: "\n".join(sorted(_of(state, words[1], "clients"), key=int)),
        ("start_server", 3): lambda: _start_server(state),
        ("terminate_client", 3): lambda: _terminate(state, words[1], words[2]),
        ("set_default_active_thread_percentage", 2): lambda: _set_percent(state, words[1]),
        ("get_default_active_thread_percentage", 1): lambda: str(state["percent"]),
        ("sm_partition", 4): lambda: _partition(folder, state, words[1:]),
        ("lspart", 1): lambda: _table(state, settings_of(folder)),
    }
    answer = answers.get((words[0], len(words))) if words else None
    # The text for an unknown command is made up.
    reply = answer() if answer else f"Unknown command: {' '.join(words)}"
    _write(pipe / "state.json", state)
    return reply


# -- protocol 3 ----------------------------------------------------------------------------------------------------------


def _verb(folder: Path, pipe: Path, words: list[str]) -> int:
    """One command of protocol 3: module, verb and arguments."""
    with _locked(folder):
        if not _pid(pipe):
            code, reply = 1, NO_DAEMON
        elif _read(pipe / "state.json")["protocol"] != 3:
            code, reply = 1, f"{COMMAND}: invalid option"
        else:
            code, reply = _answer_verb(folder, pipe, words)
        _note(folder, {"command": " ".join(words), "reply": reply, "pipe": str(pipe)})
    if reply:
        print(reply)
    return code


def _answer_verb(folder: Path, pipe: Path, words: list[str]) -> tuple[int, str]:
    if words == ["-q"]:
        return 0, _quit(folder, pipe)
    state = _read(pipe / "state.json")
    _settle(state)
    options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    named = [word for word in words[2:] if not word.startswith("--")]
    assert options.get("format", "csv,noheader") == "csv,noheader", "the fake has no tables"
    answers: dict[str, Callable[[], tuple[int, str]]] = {
        "server list": lambda: (0, _server_rows(state, pipe)),
        "server create": lambda: (0, _start_server(state)),
        "client list": lambda: (0, _client_rows(state)),
        "client terminate": lambda: _terminate_named(state, *named),
        "sm-partition create": lambda: _create(folder, state, *named, **options),
        "sm-partition delete": lambda: _delete(folder, state, *named, **options),
        "sm-partition list": lambda: (0, _partition_rows(state, settings_of(folder))),
    }
    answer = answers.get(" ".join(words[:2]))
    found = answer() if answer else (1, f"Unknown command: {' '.join(words)}")
    _write(pipe / "state.json", state)
    return found


def _server_name() -> str:
    return f"uid_{os.getuid()}"


def _server_rows(state: Json, pipe: Path) -> str:
    words = {"ACTIVE": "Ready", "FAULT": "Faulted"}
    return "\n".join(
        f"{_server_name()},{os.getuid()},{pid},{words[server['status']]},{pipe}/{_server_name()},{state['gpu']},-"
        for pid, server in sorted(state["servers"].items())
    )


def _client_rows(state: Json) -> str:
    clients = sorted((c for server in state["servers"].values() for c in server["clients"]), key=int)
    return "\n".join(f"{client},{_server_name()},0,default,python serve.py --gpu 0,1" for client in clients)


def _terminate_named(state: Json, client: str) -> tuple[int, str]:
    server = next((pid for pid, each in state["servers"].items() if client in each["clients"]), "")
    return (0, "") if _terminate(state, server, client) == "CUDA_SUCCESS" else (1, f"Client {client} not found")


def _create(folder: Path, state: Json, name: str, *, server: str, device: str, chunks: str) -> tuple[int, str]:
    if not settings_of(folder).static_ok:
        return 1, "SM partitions are not supported on this device"
    if server != _server_name() or device != state["gpu"] or name in state["names"]:
        return 1, f"Invalid server, device or name: {server} {device} {name}"
    if not state["servers"]:
        return 0, f"SM partition '{name}' configured on device {device}"
    value = _add(folder, state, int(chunks))
    if "Failed" in value:
        return 1, value
    partition = value.partition("/")[2]
    state["names"][name] = partition
    sms = _sms_of(state, partition, settings_of(folder))
    return 0, f"SM partition '{name}' created on device {device} (sm-count={sms})\nCUDA_MPS_SM_PARTITION={value}"


def _delete(folder: Path, state: Json, name: str, *, server: str, device: str) -> tuple[int, str]:
    what = state["names"].get(name)
    if what is None or _held(folder, state, what):
        return 1, f"SM partition '{name}' {'not found' if what is None else 'in use'}"
    del state["names"][name], state["partitions"][what]
    return 0, f"SM partition '{name}' deleted from device {device}"


def _partition_rows(state: Json, settings: Settings) -> str:
    rows = [
        (
            _server_name(),
            state["gpu"],
            name,
            state["partitions"][what],
            _sms_of(state, what, settings),
            "false,created",
            what,
        )
        for name, what in state["names"].items()
    ]
    chunks = settings.chunks - sum(state["partitions"].values())
    if chunks:
        sms = settings.sms - sum(int(row[4]) for row in rows)
        rows.append((_server_name(), state["gpu"], "-", chunks, sms, "-,unallocated", "-"))
    return "\n".join(",".join(map(str, row)) for row in rows)


# -- partitions and clients of both --------------------------------------------------------------------------------------


def _of(state: Json, server: str, key: str) -> Any:
    # The text for an unknown server is made up.
    found = state["servers"].get(server)
    return found[key] if found else f"Server {server} does not exist" if key == "status" else []


def _start_server(state: Json) -> str:
    _server(state)
    return ""


def _terminate(state: Json, server: str, client: str) -> str:
    # The replies are second hand: a CUDA result.
    clients = state["servers"].get(server, {"clients": {}})["clients"]
    if clients.pop(client, None) is None:
        return "CUDA_ERROR_NOT_FOUND"
    state["marks"][client] = "ended"
    _settle(state)
    return "CUDA_SUCCESS"


def _set_percent(state: Json, text: str) -> str:
    state["percent"] = float(text)
    return str(state["percent"])


def _partition(folder: Path, state: Json, words: list[str]) -> str:
    verb, uuid, what = words
    if not state["static"]:
        return "Static SM partitioning is not enabled"  # made up
    if uuid != state["gpu"]:
        return f"Device {uuid} not found"  # made up
    if verb == "add":
        return _add(folder, state, int(what))
    if verb != "rm" or what not in state["partitions"]:
        return f"Partition {what} not found"  # made up
    if _held(folder, state, what):
        return f"Partition {what} in use. Terminate all clients before removing."
    del state["partitions"][what]
    return f"Partition {uuid}/{what} removed"  # made up


def _held(folder: Path, state: Json, partition: str) -> bool:
    """Whether a partition cannot be removed."""
    seats = [seat for server in state["servers"].values() for seat in server["clients"].values()]
    return any(seat["partition"] == partition for seat in seats) or _spend(folder, "refuse_remove")


def _sms_of(state: Json, partition: str, settings: Settings) -> int:
    """The SMs of a partition: chunks, and what makes none if it took the last one."""
    made, chunks = list(state["partitions"]), sum(state["partitions"].values())
    last = settings.remainder and partition == made[-1] and chunks == settings.chunks
    beyond = settings.sms - settings.chunks * settings.chunk if last else 0
    return int(state["partitions"][partition]) * settings.chunk + beyond


def _add(folder: Path, state: Json, chunks: int) -> str:
    settings = settings_of(folder)
    clients = any(server["clients"] for server in state["servers"].values())
    room = settings.chunks - sum(state["partitions"].values())
    live = state["protocol"] == 2 if settings.add_live is None else settings.add_live
    if _spend(folder, "refuse_add") or chunks > room or (clients and not live):
        error = "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION"
        return f"Failed to fulfill the requested SM partition of {chunks} chunks, error {error}"
    state["cut"] += 1
    # As real ones do, the identifier has slashes of its own.
    partition = f"D{state['cut']}/{'A' * 30}"
    state["partitions"][partition] = chunks
    name = f"{state['gpu']}/{partition}"
    return name if settings.add_form == "id" or state["protocol"] == 3 else f"Partition {name} created"


def _table(state: Json, settings: Settings) -> str:
    used = sum(state["partitions"].values())
    free, gpu = settings.chunks - used, str(state["gpu"])[:12]
    taken = sum(_sms_of(state, partition, settings) for partition in state["partitions"])
    held = {seat["partition"] for s in state["servers"].values() for seat in s["clients"].values()}
    rows = [
        "GPU           Partition                         free    used    free  used  clients",
        "                                                chunks  chunks  SM    SM",
        f"{gpu}  -  {free}  {used}  {settings.sms - taken}  {taken}  -",
    ]
    for partition, chunks in state["partitions"].items():
        clients = "Yes" if partition in held else "No"
        rows.append(f"{gpu}  {partition}  -  {chunks}  -  {_sms_of(state, partition, settings)}  {clients}")
    return "\n".join(rows)


def _quit(folder: Path, pipe: Path) -> str:
    pid = _pid(pipe)
    if pid and not _read(folder / "armed.json").get("deaf_quit"):
        state = _read(pipe / "state.json")
        _lose_servers(state)
        _write(pipe / "state.json", state)
        os.kill(pid, signal.SIGTERM)
        _until_gone(pid)
    return ""


# -- servers, clients, files ---------------------------------------------------------------------------------------------


def _server(state: Json) -> Json:
    """The server, started if there is none."""
    if not state["servers"]:
        state["servers"][str(state["next"])] = {"status": "ACTIVE", "clients": {}, "hit": []}
        state["next"] += 1
    server: Json = next(iter(state["servers"].values()))
    return server


def _strike(server: Json, hit: list[str], *, contained: bool = False) -> None:
    for client in hit:
        server["clients"][client]["mark"] = "faulted"
    if not contained:
        server["status"], server["hit"] = "FAULT", hit


def _marks_of(state: Json) -> dict[str, str]:
    seats = [seat for server in state["servers"].values() for seat in server["clients"].items()]
    return {client: seat["mark"] for client, seat in seats if "mark" in seat}


def _lose_servers(state: Json) -> None:
    state["marks"].update({client: "lost" for server in state["servers"].values() for client in server["clients"]})
    state["servers"] = {}


def _settle(state: Json) -> None:
    """Clients whose process has ended leave; a server is active again once all that were hit have left."""
    state["marks"].update(_marks_of(state))
    for server in state["servers"].values():
        server["clients"] = {client: seat for client, seat in server["clients"].items() if _runs(int(client))}
        server["hit"] = [client for client in server["hit"] if client in server["clients"]]
        if server["status"] == "FAULT" and not server["hit"]:
            server["status"] = "ACTIVE"


def _cuda_variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in sorted(environ.items()) if name.startswith(("CUDA_MPS_", "CUDA_VISIBLE"))}


def _spend(folder: Path, failure: str) -> bool:
    """Whether an armed failure happens now, once less from then on."""
    armed = _read(folder / "armed.json")
    left = armed.get(failure, 0)
    if left > 0:
        _write(folder / "armed.json", {**armed, failure: left - 1})
    return bool(left > 0)


def _pipes(folder: Path) -> list[Path]:
    return [Path(line) for line in dict.fromkeys(_lines(folder / "pipes")) if (Path(line) / "state.json").exists()]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _pid(pipe: Path) -> int | None:
    """The daemon of a pipe directory, if it lives."""
    try:
        pid = int((pipe / PID_FILE).read_text())
    except (OSError, ValueError):
        return None
    return pid if _runs(pid) else None


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def _until_gone(pid: int) -> None:
    while _runs(pid):
        time.sleep(0.002)


def _read(path: Path) -> Json:
    try:
        found: Json = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def _write(path: Path, value: Json) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(value))
    fresh.replace(path)


def _note(folder: Path, entry: Json) -> None:
    with (folder / "transcript.jsonl").open("a") as out:
        out.write(json.dumps(entry) + "\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

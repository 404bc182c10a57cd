"""Checks of the machine besides its GPUs: values in, findings out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hasfaas.core.settings import GATEWAY_SOCKET, SOCKET_PATH_BYTES, Settings
from hasfaas.node.finding import Finding, State, fail, note, ok, warn
from hasfaas.node.machine_facts import MISSING, Folder, Machine
from hasfaas.node.shm_files import SHM

MIB, GIB = 2**20, 2**30
# The token tables of the devices and the smaller of the values that calls pass; below it not even those are safe.
SHM_LEAST_BYTES = 32 * MIB
# A gateway's and a client's pool of segments may take 512 MiB each (hasfaas.wire.segments).
SHM_GOOD_BYTES = GIB
MEMLOCK_GOOD_BYTES = GIB


def machine_findings(machine: Machine, settings: Settings, runtime: Folder, state: Folder) -> Iterator[Finding]:
    """Everything that holds for any device."""
    yield ok("python", machine.python)
    yield packages(machine.packages)
    yield processors(machine.cores, machine.limits.cores, settings)
    yield memory(machine.memory_bytes, machine.limits.memory_bytes, settings)
    yield locked_memory(machine.memlock_bytes)
    yield shared_memory(machine.shm_bytes, machine.shm_free_bytes)
    yield runtime_folder(runtime, machine.uid)
    yield state_folder(state)


def packages(found: Iterable[tuple[str, str]]) -> Finding:
    """The versions of what hasfaas cannot do without."""
    pairs = tuple(found)
    detail = ", ".join(f"{name} {version}" for name, version in pairs)
    missing = [name for name, version in pairs if version == MISSING]
    if missing:
        return fail("packages", detail, f"install hasfaas anew, so that {' and '.join(missing)} come with it")
    return ok("packages", detail)


def processors(cores: int, quota: float | None, settings: Settings) -> Finding:
    """The cores that this process may use, against the time that its control group is given on them."""
    if quota is None or quota >= cores:
        return ok("processors", f"{cores} cores")
    whole = max(math.floor(quota), 1)
    detail = f"{cores} cores, of which the control group gives {quota:g}: replicas are paused when that is used up"
    if all(device.kind not in ("cpu", "auto") or (device.cores or cores) <= quota for device in settings.devices):
        return note("processors", detail)
    return warn(
        "processors",
        detail,
        f'set `cores = {whole}` of the cpu device in [[devices]] (kind = "cpu"), or raise the quota',
    )


def memory(total_bytes: int | None, limit_bytes: int | None, settings: Settings) -> Finding:
    """The machine's memory, against the limit at which the kernel kills."""
    if total_bytes is None:
        return warn("memory", "/proc/meminfo does not tell it", "mount /proc: a cpu device takes its memory from there")
    if limit_bytes is None or limit_bytes >= total_bytes:
        return ok("memory", f"{_gib(total_bytes)}, no lower limit of a control group")
    detail = (
        f"{_gib(total_bytes)}, of which the control group allows {_gib(limit_bytes)}: the kernel kills what is above"
    )
    promised = [device.memory_bytes or total_bytes for device in settings.devices if device.kind in ("cpu", "auto")]
    if sum(promised) <= limit_bytes:
        return note("memory", detail)
    cure = f'set `memory = "{max(limit_bytes // MIB * 3 // 4, 1)}MiB"` of the cpu device in [[devices]], or raise the limit'
    return warn("memory", detail, cure)


def locked_memory(limit_bytes: int | None) -> Finding:
    """The limit of locked memory (ulimit -l), which counts pinned host memory with some drivers and network cards."""
    if limit_bytes is None or limit_bytes >= MEMLOCK_GOOD_BYTES:
        return ok("locked memory", "no limit" if limit_bytes is None else f"up to {_gib(limit_bytes)}")
    return note(
        "locked memory",
        f"up to {limit_bytes // MIB} MiB; no matter, unless pinned host memory is refused",
        "then `ulimit -l unlimited`; for a container: --ulimit memlock=-1",
    )


def shared_memory(size_bytes: int | None, free_bytes: int | None) -> Finding:
    """The tmpfs where the token tables and large values lie."""
    check, cure = str(SHM), f"`mount -o remount,size=2G {SHM}` as root; for a container: --shm-size=2g"
    if size_bytes is None or free_bytes is None:
        return fail(check, "missing, or not writable by this user", f"mount a tmpfs at {SHM}, with mode 1777")
    detail = f"{_gib(size_bytes)}, {_gib(free_bytes)} free"
    if free_bytes < SHM_LEAST_BYTES:
        cure = f"remove what fills it (`ls -l {SHM}`); or {cure}"
        return fail(check, f"{detail}: too little for the token tables and values of calls", cure)
    if free_bytes < SHM_GOOD_BYTES:
        return warn(check, f"{detail}: large values of calls may not fit", cure)
    return ok(check, detail)


def runtime_folder(folder: Folder, uid: int) -> Finding:
    """The folder of the gateway's sockets: short enough for the kernel, ours, and closed to others."""
    length = len(os.fsencode(Path(folder.path) / GATEWAY_SOCKET))
    detail = f"{folder.path}, socket paths of {length} bytes"
    elsewhere = "set HASFAAS_RUNTIME_DIR to a short folder of your own"
    if length >= SOCKET_PATH_BYTES:
        return fail("runtime_dir", f"{detail}: less than {SOCKET_PATH_BYTES} are safe", elsewhere)
    if folder.mode is None:
        made = "made at the first start" if folder.writable else "cannot be made by this user"
        return ok("runtime_dir", f"{detail}, {made}") if folder.writable else fail("runtime_dir", made, elsewhere)
    if folder.owner != uid or folder.mode & 0o077 or not folder.writable:
        wrong = f"{detail}, belongs to user {folder.owner} with mode {folder.mode:o}; it must be yours with mode 700"
        return fail("runtime_dir", wrong, f"`chmod 700 {folder.path}` if it is yours; else {elsewhere}")
    return ok("runtime_dir", detail)


def state_folder(folder: Folder) -> Finding:
    """Where deployed functions and the records of GPUs are kept."""
    if folder.writable:
        return Finding(
            "state_dir", State.OK, folder.path + (", made at the first start" if folder.mode is None else "")
        )
    return fail(
        "state_dir", f"{folder.path}: this user cannot write there", "set HASFAAS_STATE_DIR to a folder of your own"
    )


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"

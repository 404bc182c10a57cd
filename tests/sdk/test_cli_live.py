"""The shell from its console script to a replica: one real gateway, in folders of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

HELPER = "FACTOR = 3\n\n\ndef times(x):\n    return x * FACTOR\n"
APP = """
import time

import numpy as np
import shop_helper

from hasfaas import function


@function(slo_ms=500, memory="256MiB")
def embed(x: np.ndarray):
    print("embedding", np.shape(x), flush=True)
    return shop_helper.times(np.asarray(x))


@function(slo_ms=500, memory="256MiB")
def fail(x):
    raise ValueError(f"bad {x}")


@function(slo_ms=500, memory="256MiB")
def slow(seconds):
    time.sleep(seconds)


@function(slo_ms=500, memory="256MiB")
def count(n):
    yield from range(n)


if __name__ == "__main__":
    print(embed.version)
    print(embed.remote(np.ones(2)).tolist())
"""


@attrs.frozen
class Machine:
    """A user's folders and how the shell is run in them."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """This process's environment with folders of its own, and none of its settings."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HASFAAS_")}
        own = {"HASFAAS_STATE_DIR": f"{self.folder}/s", "HASFAAS_RUNTIME_DIR": f"{self.folder}/r"}
        return clean | own | {"XDG_CONFIG_HOME": f"{self.folder}/c", "HASFAAS_LOCAL_DRAIN_TIMEOUT_S": "3"}

    def __call__(
        self, *args: str, stdin: bytes = b"", expect: int = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs `hasfaas ARGS...` in a folder that is not the app's."""
        script = Path(sys.executable).with_name("hasfaas")
        done = self.python(str(script), *args, stdin=stdin, cwd=cwd)
        assert done.returncode == expect, (args, done)
        assert b"Traceback" not in done.stderr.replace(b"Remote traceback", b""), done.stderr
        return done

    def python(self, *args: str, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
        """Runs a Python script."""
        return subprocess.run(
            [sys.executable, *args],
            input=stdin,
            capture_output=True,
            cwd=cwd or self.folder,
            env=self.env,
            timeout=60,
            check=False,
        )

    def json(self, *args: str) -> object:
        """What the command prints with --json."""
        parsed: object = json.loads(self(*args, "--json").stdout)
        return parsed

    def rows(self) -> list[dict[str, object]]:
        """What `ps` says of embed."""
        rows = self.json("ps", "--interval", "0")
        assert isinstance(rows, list)
        return [row for row in rows if row["function"] == "shop.embed"]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A short path: a socket's is limited."""
    folder = Path(tempfile.mkdtemp(prefix="hf-cli-", dir="/tmp"))
    (folder / "app").mkdir()
    (folder / "app" / "shop.py").write_text(APP)
    (folder / "app" / "shop_helper.py").write_text(HELPER)
    made = Machine(folder)
    try:
        yield made
    finally:
        made("down")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def hasfaas(machine: Machine) -> Machine:
    """The machine with a gateway that stays, and one function deployed."""
    machine("up")
    assert machine("deploy", "app/shop.py::embed").stdout.split()[0] == b"shop.embed"
    return machine


def test_nothing_runs_until_asked(machine: Machine) -> None:
    for command in (("ps",), ("status", "--json"), ("logs", "x"), ("scale", "x", "--quota", "9")):
        assert b"no gateway is running" in machine(*command, expect=5).stderr
    assert machine("down").stdout == b"no gateway was running\n"
    assert not (machine.folder / "r").exists()


def test_an_embedded_gateway_is_told_to_stay(machine: Machine) -> None:
    done = machine("invoke", "app/shop.py::embed", "[1, 2]")
    assert json.loads(done.stdout) == [3, 6]
    assert b"no gateway was running; started one" in done.stderr
    assert json.loads(machine("status", "--json").stdout)["gateway"]["embedded"] is True
    assert b"was running, which now stays" in machine("up").stdout
    assert json.loads(machine("status", "--json").stdout)["gateway"]["embedded"] is False
    assert machine("down").stdout == b"the gateway has ended\n"


def test_a_script_and_the_shell_give_one_version(hasfaas: Machine) -> None:
    script = hasfaas.python("shop.py", cwd=hasfaas.folder / "app")
    assert script.returncode == 0, script
    version, result = script.stdout.decode().splitlines()
    assert result == "[3.0, 3.0]"
    (from_above,) = json.loads(hasfaas("deploy", "app/shop.py::embed", "--json").stdout)
    (beside,) = json.loads(hasfaas("deploy", "shop.py::embed", "--json", cwd=hasfaas.folder / "app").stdout)
    assert {from_above["version"], beside["version"]} == {version}
    assert not from_above["changed"]
    assert not beside["changed"]
    hasfaas("invoke", "app/shop.py::embed", "1")
    assert [row["version"] for row in hasfaas.rows()] == [version]


def test_invoke_by_name_needs_no_user_code(hasfaas: Machine, tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "x.npy", np.arange(2.0))
    assert json.loads(hasfaas("invoke", "embed", "@x.npy", cwd=tmp_path).stdout) == [0.0, 3.0]
    data = (tmp_path / "x.npy").read_bytes()
    hasfaas("invoke", "shop.embed", "-", "--out", "y.npy", stdin=data, cwd=tmp_path)
    assert np.load(tmp_path / "y.npy").tolist() == [0.0, 3.0]


def test_a_generator_prints_a_line_an_item(hasfaas: Machine) -> None:
    assert hasfaas("invoke", "app/shop.py::count", "3").stdout == b"0\n1\n2\n"
    assert hasfaas("invoke", "count", "20").stdout.split()[-1] == b"19"
    hasfaas("delete", "count")


def test_ps_scale_and_logs(hasfaas: Machine) -> None:
    hasfaas("invoke", "embed", "[1]")
    (before,) = hasfaas.rows()
    assert before["state"] == "ready"
    assert before["unprofiled"] is True
    said = hasfaas("scale", "embed", "--quota", "30").stdout.decode()
    assert "-> 30 %" in said
    (after,) = hasfaas.rows()
    assert (after["quota_percent"], after["pid"], after["unprofiled"]) == (30.0, before["pid"], False)
    assert b"replicas 1 -> 2" in hasfaas("scale", "embed", "--replicas", "2").stdout
    hasfaas("scale", "embed", "--quota", "140", expect=2)
    assert len(hasfaas.rows()) == 2
    hasfaas("scale", "embed", "--replicas", "1")
    lines = hasfaas("logs", "embed").stdout.decode().splitlines()
    assert f"{before['replica']} | embedding (1,)" in lines


def test_what_was_deployed_answers_after_down_and_up(hasfaas: Machine) -> None:
    assert hasfaas("down").stdout == b"the gateway has ended\n"
    hasfaas("ps", expect=5)
    assert b"started a gateway, which stays" in hasfaas("up").stdout
    assert hasfaas.rows()
    assert json.loads(hasfaas("invoke", "embed", "[[1]]").stdout) == [[3]]
    assert [row["quota_percent"] for row in hasfaas.rows()] == [30.0]  # as it was sized


def test_exit_codes(hasfaas: Machine) -> None:
    failed = hasfaas("invoke", "app/shop.py::fail", "7", expect=3).stderr.decode()
    assert "ValueError: bad 7" in failed
    assert "raise ValueError" in failed
    assert b"ran out" in hasfaas("invoke", "app/shop.py::slow", "4", "--timeout", "1.5", expect=5).stderr
    assert b"not deployed" in hasfaas("invoke", "absent", expect=2).stderr
    assert b"it has: embed" in hasfaas("invoke", "app/shop.py::absent", expect=2).stderr
    assert b"missing a required argument" in hasfaas("invoke", "app/shop.py::embed", expect=2).stderr
    hasfaas("--backend", "nowhere", "ps", expect=2)
    (hasfaas.folder / "broken.py").write_text("1 / 0\n")
    broken = hasfaas.python("-m", "hasfaas", "deploy", "broken.py")
    assert broken.returncode == 3
    assert b"ZeroDivisionError" in broken.stderr


def test_delete(hasfaas: Machine) -> None:
    assert hasfaas("delete", "embed").stdout == b"shop.embed  deleted\n"
    assert hasfaas.rows() == []
    hasfaas("invoke", "embed", "1", expect=2)

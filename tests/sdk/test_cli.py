"""The shell's commands against a gateway with memory: what they print, as text and as JSON, and how they exit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hasfaas.core import errors
from hasfaas.core.settings import Settings
from hasfaas.sdk.cli import cli
from hasfaas.sdk.cli_shell import exit_code, report
from tests.fakes.shell_gateway import FakeClient, FakeGateway

Run = Callable[..., Result]
PS_KEYS = {
    "function", "version", "unprofiled", "profile", "drifted", "slo_ms", "queue_depth", "replica", "state", "device", "lane",
    "sm_asked_percent", "sm_granted_percent", "quota_percent", "used_percent", "granted_ns", "used_ns", "throttled_ns",
    "wait_ns", "overrun_ns", "lent_ns", "lends", "grants", "memory_bytes", "pid", "in_flight", "error",
    "sm_counted_percent", "enter_ms", "load_ms", "first_run_ms",
}  # fmt: skip
APP = """
from hasfaas import function

@function(slo_ms=50)
def twice(x, more=0):
    return 2 * x + more

@function(slo_ms=50)
def thrice(x):
    return 3 * x

def plain(x):
    return x
"""


@pytest.fixture
def gateway(tmp_path: Path) -> FakeGateway:
    return FakeGateway(Settings(state_dir=tmp_path / "s", runtime_dir=tmp_path / "r"))


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings of the machine's; `sys.path` and the user's modules are put back."""
    for name in ("HASFAAS_STATE_DIR", "HASFAAS_RUNTIME_DIR", "HASFAAS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def run(gateway: FakeGateway) -> Run:
    """Runs the shell with some arguments; exceptions that nobody expects fail the test."""

    def run(*args: str, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(
            cli, args, input=stdin, obj=lambda settings: FakeClient(gateway), catch_exceptions=False
        )

    return run


def _ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    assert not result.stderr, result.stderr
    return result.stdout


# -- looking


def test_ps_shows_a_row_for_each_replica_and_functions_without(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.embed", replicas=2)
    gateway.add("app.idle", replicas=0)
    rows = json.loads(_ok(run("ps", "--interval", "0.001", "--json")))
    assert [(row["function"], row["replica"]) for row in rows] == [
        ("app.embed", "app.embed-1"),
        ("app.embed", "app.embed-2"),
        ("app.idle", None),
    ]
    assert all(set(row) == PS_KEYS for row in rows)
    # 30 ms more in each 100 ms between two looks.
    assert rows[0]["used_percent"] == pytest.approx(30.0)
    assert rows[2]["used_percent"] is None
    assert [row["sm_counted_percent"] for row in rows] == [50.0, 50.0, None]
    assert [rows[0][part] for part in ("enter_ms", "load_ms", "first_run_ms")] == [250.0, 1500.0, 3.0]
    lines = _ok(run("ps", "--interval", "0.001")).splitlines()
    assert len(lines) == 4
    assert "25/50" in lines[1]
    assert "2 ms" in lines[1]
    assert lines[1].endswith("250 ms + 1.5 s + 3 ms")
    assert "app.embed (unprofiled)" in lines[1]
    assert lines[3].split() == ["app.idle", "(unprofiled)", "none"]


def test_ps_says_what_a_replica_found_where_that_is_not_what_it_was_given(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.embed").replicas[0].sm_counted_percent = 47.0
    assert "25/50, found 47" in _ok(run("ps", "--interval", "0"))


def test_ps_shows_the_whole_of_long_names_where_there_is_no_terminal(run: Run, gateway: FakeGateway) -> None:
    name = "app." + "x" * 200
    gateway.add(name)
    assert f"{name}-1" in _ok(run("ps", "--interval", "0"))


def test_ps_without_an_interval_looks_once(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.embed")
    rows = json.loads(_ok(run("ps", "--interval", "0", "--json")))
    assert rows[0]["used_percent"] is None
    assert gateway.looks == 1


def test_ps_shows_what_is_wrong_with_a_replica(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.embed").replicas[0].error = "no weights [here]"
    assert "app.embed-1: no weights [here]" in _ok(run("ps", "--interval", "0"))


def test_names_are_not_read_as_markup(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.[bold]f")
    assert "app.[bold]f" in _ok(run("ps", "--interval", "0"))


def test_status(run: Run, gateway: FakeGateway) -> None:
    function = gateway.add("app.embed")
    function.calls.accepted, function.calls.completed, function.calls.slo_met = 10, 8, 6
    shown = json.loads(_ok(run("status", "--json")))
    assert set(shown) == {"gateway", "devices", "functions"}
    assert shown["gateway"]["pid"] == 77
    assert shown["gateway"]["embedded"] is False
    assert shown["devices"][0]["lanes"] == [{"lane": 0, "units": [0], "sm_percent": 50.0, "quota_percent": 80.0}]
    assert shown["functions"][0]["calls"]["slo_met"] == 6
    assert shown["functions"][0]["replicas"] == ["app.embed-1"]
    text = _ok(run("status"))
    assert "pid 77, up 1.5 min, stays" in text
    assert "50 ms at p99" in text
    assert "75" in text
    assert "cpu0: name Accelerator 1" in text


def test_status_says_why_a_device_takes_nobody_and_what_cures_it(run: Run, gateway: FakeGateway) -> None:
    gateway.condition = ("recovering", "a client faulted", "it comes back by itself")
    assert "cpu0 is recovering: a client faulted. it comes back by itself" in _ok(run("status"))
    (device,) = json.loads(_ok(run("status", "--json")))["devices"]
    assert (device["health"], device["why"], device["cure"]) == gateway.condition


@pytest.mark.parametrize(
    "command",
    [("ps",), ("status",), ("status", "--json"), ("scale", "f", "--quota", "5"), ("logs", "f"), ("delete", "f")],
    ids=" ".join,
)
def test_looking_starts_nothing(run: Run, gateway: FakeGateway, command: tuple[str, ...]) -> None:
    gateway.up_now = False
    result = run(*command)
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr == "hasfaas: no gateway is running; start one with `hasfaas up`\n"
    assert not gateway.up_now


def test_up_says_what_it_did(run: Run, gateway: FakeGateway) -> None:
    gateway.up_now = False
    assert "started a gateway, which stays" in _ok(run("up"))
    assert "was running, which now stays" in _ok(run("up"))
    assert _ok(run("down")) == "the gateway has ended\n"
    assert _ok(run("down")) == "no gateway was running\n"


# -- sizing


def test_scale_prints_what_changed(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.embed")
    said = _ok(run("scale", "embed", "--quota", "40", "--replicas", "2"))
    assert said == "app.embed: quota 100 -> 40 %, replicas 1 -> 2; in force after 1.2 ms\n"
    assert "nothing changed" in _ok(run("scale", "embed", "--quota", "40"))
    shown = json.loads(_ok(run("scale", "embed", "--sm", "75", "--json")))
    assert shown == {
        "function": "app.embed",
        "applied_ms": 1.25,
        "before": {"replicas": 2, "quota_percent": [40.0], "sm_percent": [50.0], "lends": 0},
        "after": {"replicas": 2, "quota_percent": [40.0], "sm_percent": [75.0], "lends": 0},
    }


def test_scale_without_replicas_is_said_to_be_for_later(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.embed", replicas=0)
    assert "replicas to come" in _ok(run("scale", "embed", "--quota", "40"))


@pytest.mark.parametrize("options", [(), ("--quota", "much"), ("--replicas", "-1")], ids=str)
def test_scale_needs_something_to_set(run: Run, gateway: FakeGateway, options: tuple[str, ...]) -> None:
    gateway.add("app.embed")
    assert run("scale", "embed", *options).exit_code == 2


def test_logs(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.embed")
    gateway.lines = [("app.embed-1", "one"), ("app.embed-1", "two [x]"), ("app.embed-2", "three")]
    assert _ok(run("logs", "embed")).splitlines()[0] == "app.embed-1 | one"
    assert _ok(run("logs", "embed", "--tail", "2")) == "app.embed-1 | two [x]\napp.embed-2 | three\n"
    assert _ok(run("logs", "embed", "--tail", "0")) == ""
    assert json.loads(_ok(run("logs", "embed", "--tail", "1", "--json"))) == {"replica": "app.embed-2", "line": "three"}
    assert run("logs", "nothing").exit_code == 2


def test_delete(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.embed")
    assert _ok(run("delete", "embed")) == "app.embed  deleted\n"
    assert not gateway.functions
    assert run("delete", "embed").exit_code == 2


# -- calling


def test_invoke_by_name(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add("app.echo")
    gateway.code["app.echo"] = lambda *args, **kwargs: [args, kwargs]
    np.save(tmp_path / "x.npy", np.arange(3))
    said = _ok(run("invoke", "echo", "1", "text", f"x=@{tmp_path}/x.npy", "k=[true]", "@@at", "-2.5"))
    assert json.loads(said) == [[1, "text", "@at", -2.5], {"x": [0, 1, 2], "k": [True]}]
    assert json.loads(_ok(run("invoke", "echo", "-", stdin=b'{"a": 1}'))) == [[{"a": 1}], {}]
    assert gateway.timeouts_s == [7.0, 7.0]  # the function's own
    _ok(run("invoke", "echo", "--timeout", "2", "1"))
    assert gateway.timeouts_s[-1] == 2.0


def test_invoke_takes_a_typo_for_an_option_not_for_an_argument(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.echo")
    result = run("invoke", "echo", "--tmeout", "1")
    assert result.exit_code == 2
    assert "--tmeout" in result.stderr
    assert not gateway.timeouts_s


def test_invoke_of_a_stream_prints_a_line_an_item(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add("app.count", kind="generator")
    gateway.code["app.count"] = lambda n: iter(range(n))
    assert _ok(run("invoke", "count", "3")) == "0\n1\n2\n"
    _ok(run("invoke", "count", "2", "--out", "items.json"))
    assert (tmp_path / "items.json").read_text() == "0\n1\n"
    assert run("invoke", "count", "2", "--out", "items.npy").exit_code == 2


def test_a_large_result_is_summarised_and_kept_by_out(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add("app.zeros")
    gateway.code["app.zeros"] = lambda: np.zeros((40, 50), np.float32)
    result = run("invoke", "zeros")
    assert json.loads(result.stdout)["shape"] == [40, 50]
    assert "--out FILE" in result.stderr
    assert run("invoke", "zeros", "--out", "z.npy").stdout == ""
    assert np.array_equal(np.load(tmp_path / "z.npy"), np.zeros((40, 50)))


def test_a_bad_out_is_told_before_the_call(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.echo")
    for out in ("x.txt", "nowhere/x.json"):
        assert run("invoke", "echo", "--out", out).exit_code == 2
    assert not gateway.timeouts_s


def test_invoke_of_a_file(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "someapp.py").write_text(APP)
    gateway.code["someapp.twice"] = lambda x, more=0: 2 * x + more
    assert _ok(run("invoke", "someapp.py::twice", "4", "more=1")) == "9\n"
    assert "someapp.twice" in gateway.functions
    # What the function does not take is told here, with what it takes.
    wrong = run("invoke", "someapp.py::twice", "4", "5", "6")
    assert wrong.exit_code == 2
    assert "(x, more=0)" in wrong.stderr


def test_invoke_of_a_file_with_several_functions_asks_which(run: Run, tmp_path: Path) -> None:
    (tmp_path / "someapp.py").write_text(APP)
    result = run("invoke", "someapp.py", "4")
    assert result.exit_code == 2
    assert "twice, thrice" in result.stderr


def test_invoke_starts_a_gateway_when_none_runs(run: Run, gateway: FakeGateway) -> None:
    gateway.add("app.echo")
    gateway.code["app.echo"] = lambda: 1
    gateway.up_now = False
    assert _ok(run("invoke", "echo")) == "1\n"
    assert gateway.up_now


# -- deploying


def test_deploy_all_or_one(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "someapp.py").write_text(APP)
    (line,) = _ok(run("deploy", "--no-warm", "someapp.py::twice")).splitlines()
    name, version, changed = line.split()
    assert (name, changed) == ("someapp.twice", "changed")
    assert not gateway.functions["someapp.twice"].replicas
    shown = json.loads(_ok(run("deploy", "someapp.py", "--json")))
    assert shown[0] == {"name": "someapp.twice", "version": version, "changed": False}
    assert (shown[1]["name"], shown[1]["changed"]) == ("someapp.thrice", True)
    assert len(gateway.functions["someapp.thrice"].replicas) == 1  # warm unless told otherwise


def test_deploy_of_an_unknown_name_lists_what_there_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "someapp.py").write_text(APP)
    result = run("deploy", "someapp.py::twcie")
    assert result.exit_code == 2
    assert "it has: twice, thrice" in result.stderr
    assert "not decorated" in run("deploy", "someapp.py::plain").stderr


def test_what_the_configuration_says_of_a_function_counts(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "someapp.py").write_text(APP)
    gateway.settings = Settings(state_dir=tmp_path, runtime_dir=tmp_path, functions={"someapp.twice": {"slo_ms": 20.0}})
    _ok(run("deploy", "someapp.py::twice"))
    assert gateway.functions["someapp.twice"].spec.slo_ms == 20.0


# -- configuration


def test_config_show(run: Run, tmp_path: Path) -> None:
    (tmp_path / "hasfaas.toml").write_text("[local]\nmax_queue = 7\n")
    rows = json.loads(_ok(run("--set", "local.window_ms=50", "config", "show", "--origin", "--json")))
    by_key = {row["key"]: row for row in rows}
    assert by_key["local.window_ms"] == {"key": "local.window_ms", "value": 50.0, "origin": "command line"}
    assert by_key["local.max_queue"]["value"] == 7
    assert by_key["local.max_queue"]["origin"] == str(tmp_path / "hasfaas.toml")
    assert by_key["devices"]["value"][0]["kind"] == "auto"
    assert all(set(row) == {"key", "value"} for row in json.loads(_ok(run("config", "show", "--json"))))
    assert "command line" in _ok(run("--backend", "local", "config", "show", "--origin"))
    assert "origin" not in _ok(run("config", "show")).splitlines()[0]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--set", "local.window=5"), "did you mean 'window_ms'"),
        (("--set", "local.window_ms=soon"), "window_ms"),
        (("--set", "nothing"), "KEY=VALUE"),
    ],
    ids=str,
)
def test_a_bad_setting_is_a_usage_error(run: Run, options: tuple[str, str], complaint: str) -> None:
    result = run(*options, "config", "show")
    assert result.exit_code == 2
    assert complaint in result.stderr


# -- errors


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.InvalidRequestError, 2),
        (errors.SerializationError, 2),
        (errors.NotFoundError, 2),
        (errors.FunctionError, 3),
        (errors.MemoryLimitError, 3),
        (errors.UnavailableError, 5),
        (errors.OverloadedError, 5),
        (errors.PlacementError, 5),
        (errors.DeadlineError, 5),
        (errors.BackendError, 5),
        (errors.AuthError, 5),
        (errors.IncompatibleError, 5),
    ],
)
def test_exit_codes(run: Run, gateway: FakeGateway, cls: type[errors.HasFaasError], code: int) -> None:
    gateway.failure = cls("the reason")
    result = run("ps")
    assert result.exit_code == code == exit_code(gateway.failure)
    assert result.stdout == ""
    assert "the reason" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_error_exits_with_1() -> None:
    ours = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.HasFaasError)]
    assert {exit_code(cls("x")) for cls in ours} == {2, 3, 5}


def test_the_traceback_is_shown_when_asked_for(run: Run, gateway: FakeGateway) -> None:
    gateway.failure = errors.BackendError("the reason")
    result = run("--traceback", "ps")
    assert result.exit_code == 5
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("hasfaas: the reason\n")


def test_what_the_function_raised_is_shown_as_python_would(capsys: pytest.CaptureFixture[str]) -> None:
    frames = (errors.RemoteFrame("/u/app.py", 7, "embed", "return 1 / x"),)
    raised = errors.FunctionError("division by zero", qualname="ZeroDivisionError", frames=frames, notes=("a note",))
    report(raised, show_traceback=False)
    assert capsys.readouterr().err.splitlines() == [
        "hasfaas: the function raised ZeroDivisionError: division by zero",
        "Remote traceback (most recent call last):",
        '  File "/u/app.py", line 7, in embed',
        "    return 1 / x",
        "ZeroDivisionError: division by zero",
        "a note",
    ]


def test_usage_errors_are_click_s(run: Run) -> None:
    assert run("nope").exit_code == 2
    assert run("ps", "--nope").exit_code == 2


def test_an_interrupt_is_no_failure_of_ours(run: Run, gateway: FakeGateway) -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    gateway.add("app.echo")
    gateway.code["app.echo"] = interrupted
    assert run("invoke", "echo").exit_code == 130


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom hasfaas.sdk.cli import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('grpc', 'numpy', 'google.protobuf', 'rich', 'asyncio', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "deploy" in done.stdout

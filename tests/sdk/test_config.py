from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.settings import SCHEMA
from hasfaas.sdk import config
from hasfaas.sdk.config import DeviceSettings, Resolved, UserFolders

PACKAGE_ROOT = Path(config.__file__).parents[2]


@attrs.frozen
class Home:
    """A user and a project in a folder of their own, so that no file of the real user is read."""

    root: Path

    @property
    def project(self) -> Path:
        return self.root / "project"

    @property
    def user(self) -> UserFolders:
        return UserFolders(
            config_file=self.root / "home/config.toml",
            state_dir=Path("/state"),
            runtime_dir=Path("/run"),
            home=self.root / "home",
        )

    def write(self, path: str, text: str) -> str:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    def load(
        self,
        cli: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        folder: str = "project",
    ) -> Resolved:
        return config.load(cli, cwd=self.root / folder, env=env or {}, user=self.user)

    def refused(
        self, cli: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None
    ) -> InvalidRequestError:
        with pytest.raises(InvalidRequestError) as caught:
            self.load(cli, env)
        return caught.value


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    (made.project / ".git").mkdir(parents=True)
    return made


def test_with_nothing_set_every_key_has_its_default_and_says_so(home: Home) -> None:
    resolved = home.load()
    assert set(resolved.origins.values()) == {"default"}
    assert resolved.settings.backend == "local"
    assert resolved.settings.state_dir == Path("/state")
    assert resolved.settings.runtime_dir == Path("/run")
    assert resolved.settings.secrets_dir == home.root / "home/secrets", "beside the user's file"
    assert resolved.settings.devices == (DeviceSettings(kind="auto"),)
    assert [key for key, _, _ in resolved.rows()] == list(resolved.origins)


def test_each_source_yields_to_the_next_stronger_one_key_by_key(home: Home) -> None:
    steps: list[str] = []

    def seen() -> None:
        resolved = home.load(cli, env)
        steps.append(f"{resolved.settings.local.linger_s:g} {resolved.origins['local.linger_s']}")
        # A table is merged key by key: the weakest source keeps what only it has.
        assert resolved.settings.local.max_queue == 7
        assert resolved.origins["local.max_queue"] == user_file

    cli: dict[str, object] = {}
    env: dict[str, str] = {}
    user_file = home.write("home/config.toml", "[local]\nlinger_s = 1\nmax_queue = 7\n")
    seen()
    pyproject = home.write("project/pyproject.toml", "[tool.hasfaas.local]\nlinger_s = 2\n")
    seen()
    project_file = home.write("project/hasfaas.toml", "[local]\nlinger_s = 3\n")
    seen()
    env["HASFAAS_LOCAL_LINGER_S"] = "4"
    seen()
    cli["local.linger_s"] = 5
    seen()
    assert steps == [
        f"1 {user_file}",
        f"2 {pyproject} [tool.hasfaas]",
        f"3 {project_file}",
        "4 env HASFAAS_LOCAL_LINGER_S",
        "5 command line",
    ]


def test_options_of_one_function_come_from_several_sources(home: Home) -> None:
    project_file = home.write(
        "project/hasfaas.toml",
        '[functions."app.fn"]\nslo_ms = 50\nbatch = {max_size = 8, max_wait_ms = 2}\n'
        "[functions.other]\nidempotent = true\n",
    )
    resolved = home.load(
        cli={'functions."app.fn".replicas': "[0, 2]"},
        env={"HASFAAS_FUNCTIONS": '{"app.fn": {"slo_ms": 40, "batch": {"max_size": 4}}}'},
    )
    assert resolved.settings.functions == {
        "app.fn": {"slo_ms": 40.0, "batch": {"max_size": 4, "max_wait_ms": 2.0}, "replicas": (0, 2)},
        "other": {"idempotent": True},
    }
    assert resolved.origins['functions."app.fn".slo_ms'] == "env HASFAAS_FUNCTIONS"
    assert resolved.origins['functions."app.fn".batch.max_size'] == "env HASFAAS_FUNCTIONS"
    assert resolved.origins['functions."app.fn".batch.max_wait_ms'] == project_file
    assert resolved.origins['functions."app.fn".replicas'] == "command line"


def test_variables_of_one_function_come_from_several_sources(home: Home) -> None:
    home.write("project/hasfaas.toml", '[functions."app.fn"]\nenv = {A = "1", B = "1"}\nsecrets = ["X", "Y"]\n')
    resolved = home.load(env={"HASFAAS_FUNCTIONS": '{"app.fn": {"env": {"B": "2"}, "secrets": ["Z"]}}'})
    assert resolved.settings.functions == {"app.fn": {"env": {"A": "1", "B": "2"}, "secrets": ("Z",)}}
    assert resolved.origins['functions."app.fn".env.B'] == "env HASFAAS_FUNCTIONS"


def test_a_list_is_one_setting_and_is_replaced_as_a_whole(home: Home) -> None:
    home.write("project/hasfaas.toml", '[[devices]]\nkind = "cpu"\n[[devices]]\nkind = "cpu"\ncores = 1\n')
    resolved = home.load(env={"HASFAAS_DEVICES": '[{"kind": "sim", "memory": "16GiB", "count": 4}]'})
    assert resolved.settings.devices == (DeviceSettings(kind="sim", memory="16GiB", count=4),)
    assert resolved.origins["devices"] == "env HASFAAS_DEVICES"


def test_files_are_looked_for_upwards_as_far_as_the_repository(home: Home) -> None:
    home.write("hasfaas.toml", 'backend = "outside"\n')
    home.write("pyproject.toml", '[tool.hasfaas]\nlog_level = "error"\n')
    (home.project / "a/b").mkdir(parents=True)
    assert home.load(folder="project/a/b").settings.backend == "local"
    assert home.load(folder="project/a/b").settings.log_level == "info"
    home.write("project/hasfaas.toml", 'backend = "top"\n')
    assert home.load(folder="project/a/b").settings.backend == "top"
    home.write("project/a/hasfaas.toml", 'log_level = "debug"\n')
    nearest = home.load(folder="project/a/b").settings
    assert (nearest.backend, nearest.log_level) == ("local", "debug")  # one file of the name, the nearest


def test_a_pyproject_without_our_table_is_not_ours(home: Home) -> None:
    home.write("project/pyproject.toml", '[tool.hasfaas]\nbackend = "top"\n')
    home.write("project/part/pyproject.toml", '[tool.other]\nbackend = "x"\n')
    assert home.load(folder="project/part").settings.backend == "top"


def test_a_named_file_replaces_the_search(home: Home) -> None:
    home.write("project/hasfaas.toml", 'backend = "project"\n')
    home.write("home/config.toml", 'log_level = "debug"\n')
    named = home.write("elsewhere/ci.toml", "start_timeout_s = 5\n")
    resolved = home.load(env={"HASFAAS_CONFIG": "../elsewhere/ci.toml"})
    assert resolved.settings.backend == "local"
    assert resolved.settings.log_level == "debug"
    assert Path(resolved.origins["start_timeout_s"]).samefile(named)
    missing = home.refused(env={"HASFAAS_CONFIG": "missing.toml"})
    assert "missing.toml" in str(missing)
    assert missing.reason == "BAD_OPTION"


def test_relative_paths_start_where_they_are_written(home: Home) -> None:
    home.write("project/hasfaas.toml", '[[devices]]\nkind = "sim"\nprofile = "profiles/a.json"\n')
    (home.project / "deep").mkdir()
    resolved = home.load(folder="project/deep", env={"HASFAAS_STATE_DIR": "here"}, cli={"runtime_dir": "~/r"})
    assert resolved.settings.devices[0].profile == home.project / "profiles/a.json"
    assert resolved.settings.state_dir == home.project / "deep/here"
    assert resolved.settings.runtime_dir == home.root / "home/r"


@pytest.mark.parametrize(
    ("name", "meant"), [("HASFAAS_BACKND", "HASFAAS_BACKEND"), ("HASFAAS_LINGER_S", "HASFAAS_LOCAL_LINGER_S")]
)
def test_an_unknown_variable_is_an_error_that_names_the_nearest(home: Home, name: str, meant: str) -> None:
    error = home.refused(env={name: "x", "OTHER": "y"})
    assert error.reason == "UNKNOWN_OPTION"
    assert name in str(error)
    assert f"did you mean {meant}?" in str(error)
    assert "unset it" in str(error)


def test_an_unknown_key_names_its_file_and_the_nearest(home: Home) -> None:
    file = home.write("project/hasfaas.toml", "[local]\nlinger = 3\n")
    error = home.refused()
    assert error.reason == "UNKNOWN_OPTION"
    assert "'local.linger'" in str(error)
    assert file in str(error)
    assert "did you mean 'linger_s'?" in str(error)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("backend = \n", "not valid TOML"),
        ("start_timeout_s = '60'\n", "start_timeout_s='60'"),
        ("[local]\nwindow_ms = 5\n", "local.window_ms=5"),
        ("local = 3\n", "local=3"),
        ("[[devices]]\nkind = 'cpu'\n[[devices]]\nkind = 'a gpu'\n", "devices[1].kind='a gpu'"),
        ("[[devices]]\nkind = 'sim'\ncores = 2\n", "cores=2"),
        ("devices = []\n", "devices=[]"),
        ('[functions."a.b"]\nslo_ms = 0\n', 'functions."a.b".slo_ms=0'),
        ("functions = 1\n", "functions=1"),
        ("[local]\nquantum_ms = 500\n", "local.quantum_ms=500"),
    ],
)
def test_what_a_file_gets_wrong_is_named_with_the_file(home: Home, text: str, part: str) -> None:
    file = home.write("project/hasfaas.toml", text)
    error = home.refused()
    assert error.reason == "BAD_OPTION"
    assert file in str(error)
    assert part in str(error)


def test_two_keys_that_do_not_go_together_are_named_with_both_sources(home: Home) -> None:
    file = home.write("project/hasfaas.toml", "[local]\nwindow_ms = 50\n")
    error = home.refused(env={"HASFAAS_LOCAL_QUANTUM_MS": "60"})
    assert f"local.window_ms from {file}" in str(error)
    assert "local.quantum_ms from env HASFAAS_LOCAL_QUANTUM_MS" in str(error)


@pytest.mark.parametrize("text", ["tool = 3\n", "[tool]\nhasfaas = 3\n", "[tool.hasfaas]\nbackend = 3\n", "[tool"])
def test_a_pyproject_is_read_as_strictly(home: Home, text: str) -> None:
    file = home.write("project/pyproject.toml", text)
    if text == "tool = 3\n":  # no table of ours in it
        assert home.load().settings.backend == "local"
    else:
        assert file in str(home.refused())


def test_an_unreadable_file_is_an_error(home: Home) -> None:
    file = home.write("home/config.toml", "")
    Path(file).write_bytes(b"\xff\xfe")
    assert file in str(home.refused())


def test_an_empty_variable_is_not_the_same_as_none(home: Home) -> None:
    assert "backend=''" in str(home.refused(env={"HASFAAS_BACKEND": ""}))


def test_an_option_that_was_not_given_is_no_override(home: Home) -> None:
    resolved = home.load(cli={"backend": None, "local": {"linger_s": 1}})
    assert resolved.origins["backend"] == "default"
    assert resolved.settings.local.linger_s == 1


@pytest.mark.parametrize("key", ["bakend", "local.windw_ms", "local..x", "", "a b"])
def test_an_unknown_key_on_the_command_line_is_an_error(home: Home, key: str) -> None:
    error = home.refused(cli={key: "1"})
    assert error.reason == "UNKNOWN_OPTION"
    assert "command line" in str(error)


def test_a_runtime_dir_that_is_too_deep_is_refused_unless_replaced(home: Home) -> None:
    deep = attrs.evolve(home.user, runtime_dir=Path("/" + "x" * 120))
    with pytest.raises(InvalidRequestError, match="runtime_dir"):
        config.load(cwd=home.project, env={}, user=deep)
    assert config.load({"runtime_dir": "/r"}, cwd=home.project, env={}, user=deep)


def test_every_key_has_a_variable_of_its_own() -> None:
    names = config._variables()
    assert {path[0] for path in names.values()} == set(SCHEMA)
    assert len(set(names.values())) == len(names)


def test_the_runtime_dir_is_the_users_own_or_in_tmp(tmp_path: Path) -> None:
    short = os.path.relpath(tmp_path)  # not absolute
    uid = os.getuid()
    fallback = Path(f"/tmp/hasfaas-{uid}")
    assert config._default_runtime_dir("", uid) == fallback
    assert config._default_runtime_dir(short, uid) == fallback
    assert config._default_runtime_dir("/does/not/exist", uid) == fallback
    assert config._default_runtime_dir(str(tmp_path / ("x" * 100)), uid) == fallback
    assert config._default_runtime_dir("/", config._owner(Path("/")) or 0) == Path("/hasfaas")
    assert config._default_runtime_dir("/", 10**6 + uid) == Path(f"/tmp/hasfaas-{10**6 + uid}")


def test_the_real_users_folders_are_found() -> None:
    user = UserFolders.of_this_user({})
    assert user.config_file.name == "config.toml"
    assert user.config_file.is_absolute()
    assert user.state_dir.is_absolute()


def test_importing_reads_no_file_and_no_variable(tmp_path: Path) -> None:
    (tmp_path / "hasfaas.toml").write_text("broken = \n")
    env = os.environ | {"HASFAAS_NONSENSE": "1", "PYTHONPATH": str(PACKAGE_ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "import hasfaas.sdk.config, sys; print('click' in sys.modules)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr

"""`hasfaas certs` and `hasfaas token`, and the cluster backend from the shell: an operator's side and a user's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.networked import free_port

APP = """
from hasfaas import function


@function(slo_ms=500, memory="256MiB")
def add(x):
    return x + 1


if __name__ == "__main__":
    print(add.remote(1))
"""


@attrs.frozen
class Person:
    """Somebody with folders of their own on some machine; the variables are their configuration."""

    folder: Path
    variables: dict[str, str] = attrs.field(factory=dict, hash=False)

    @property
    def env(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HASFAAS_")}
        own = {"HASFAAS_STATE_DIR": f"{self.folder}/s", "HASFAAS_RUNTIME_DIR": f"{self.folder}/r"}
        return clean | own | {"XDG_CONFIG_HOME": f"{self.folder}/c"} | self.variables

    def __call__(self, *args: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs `hasfaas ARGS...`."""
        return self.run(str(Path(sys.executable).with_name("hasfaas")), *args, expect=expect)

    def run(self, *args: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs a Python script."""
        done = subprocess.run(
            [sys.executable, *args], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == expect, (args, done)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *args: str) -> Any:
        return json.loads(self(*args, "--json").stdout)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="hf-", dir="/tmp"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def person(folder: Path, name: str, **variables: str) -> Person:
    (folder / name).mkdir()
    return Person(folder / name, {f"HASFAAS_{key.upper()}": value for key, value in variables.items()})


def test_from_nothing_to_a_call_from_elsewhere_and_back(folder: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    operator = person(
        folder,
        "operator",
        network_listen=address,
        network_cert_file=f"{folder}/operator/certs/server.pem",
        network_key_file=f"{folder}/operator/certs/server.key",
        network_tokens_file=f"{folder}/operator/tokens.json",
        devices='[{"kind": "sim"}]',
    )
    refused = operator("up", expect=2)
    assert "network.tokens_file" in refused.stderr
    assert "hasfaas token create" in refused.stderr
    made = operator.json("certs", "init", "--out", "certs", "--host", "127.0.0.1")
    assert made["hosts"] == ["127.0.0.1"]
    created = operator("token", "create", "laptop", "--scopes", "deploy,invoke,read")
    assert len(created.stdout.split()) == 1
    assert "not shown again" in created.stderr
    user = person(
        folder,
        "user",
        backend="cluster",
        cluster_addresses=json.dumps([address]),
        cluster_ca_file=f"{folder}/user/ca.pem",
        cluster_token_file=f"{folder}/user/token",
    )
    shutil.copy(made["ca_file"], user.folder / "ca.pem")
    (user.folder / "token").touch(mode=0o600)
    (user.folder / "token").write_text(created.stdout)
    (user.folder / "app.py").write_text(APP)
    assert "no gateway answers" in user("status", expect=5).stderr
    operator("up")
    try:
        assert user.run("app.py").stdout == "2\n"
        assert user("invoke", "add", "41").stdout == "42\n"
        assert user.json("status")["gateway"]["address"] == address
        assert [row["function"] for row in user.json("ps")] == ["app.add"]
        assert "quota" in user("scale", "add", "--quota", "30").stdout
        assert "hasfaas cluster down" in user("down", expect=5).stderr
        shown = user("config", "show", "--origin").stdout
        assert f"{folder}/user/token" in shown
        assert created.stdout.strip() not in shown
        operator("token", "revoke", "laptop")
        assert "revoked" in user("ps", expect=5).stderr
    finally:
        operator("down")


def test_tokens_are_listed_without_their_secrets_and_taken_back(folder: Path) -> None:
    operator = person(folder, "operator", network_tokens_file=f"{folder}/operator/t/tokens.json")
    assert operator.json("token", "list") == []
    made = operator.json("token", "create", "a", "--scopes", "invoke, read", "--expires-days", "2")
    assert made["scopes"] == ["invoke", "read"]
    operator("token", "create", "b", "--scopes", "deploy")
    rows = operator.json("token", "list")
    assert [(row["name"], row["scopes"], row["expired"]) for row in rows] == [
        ("a", ["invoke", "read"], False),
        ("b", ["deploy"], False),
    ]
    assert rows[0]["expires"] == made["expires"]
    assert rows[1]["expires"] is None
    listed = operator("token", "list").stdout
    assert "never" in listed
    assert made["token"].rpartition(".")[2] not in listed
    assert "revoke a" in operator("token", "create", "a", "--scopes", "read", expect=2).stderr
    assert "deploy,invoke,read" in operator("token", "create", "c", "--scopes", "root", expect=2).stderr
    operator("token", "create", "c", expect=2)
    operator("token", "revoke", "a")
    operator("token", "revoke", "a", expect=2)
    assert [row["name"] for row in operator.json("token", "list")] == ["b"]


def test_without_a_file_for_tokens_the_key_is_named(folder: Path) -> None:
    operator = person(folder, "operator")
    for args in (("create", "a", "--scopes", "read"), ("list",), ("revoke", "a")):
        assert "network.tokens_file" in operator("token", *args, expect=2).stderr


def test_tokens_of_a_cluster_are_kept_with_its_state(folder: Path) -> None:
    url = f"file://{folder}/state"
    operator = person(folder, "operator", backend="cluster", cluster_state_url=url)
    other = person(folder, "other", backend="cluster", cluster_state_url=url)
    assert operator.json("token", "list") == []
    made = operator.json("token", "create", "a", "--scopes", "invoke")
    assert [row["name"] for row in other.json("token", "list")] == ["a"]
    assert made["token"].rpartition(".")[2] not in (folder / "state" / "tokens.json").read_text()
    assert "revoke a" in other("token", "create", "a", "--scopes", "read", expect=2).stderr
    assert "revoked" in other("token", "revoke", "a").stdout
    assert f"no token 'a' in {url}/tokens.json" in operator("token", "revoke", "a", expect=2).stderr
    own = attrs.evolve(
        operator, variables=operator.variables | {"HASFAAS_NETWORK_TOKENS_FILE": f"{folder}/operator/t.json"}
    )
    own("token", "create", "b", "--scopes", "read")
    assert operator.json("token", "list") == [], "a file that is named comes first"
    local = attrs.evolve(operator, variables=operator.variables | {"HASFAAS_BACKEND": "local"})
    assert "cluster.state_url" in local("token", "list", expect=2).stderr
    far = attrs.evolve(operator, variables=operator.variables | {"HASFAAS_CLUSTER_STATE_URL": "nosuch://bucket"})
    assert "cluster.state_url" in far("token", "list", expect=2).stderr


def test_certificates_say_what_they_are_and_are_renewed(folder: Path) -> None:
    operator = person(folder, "operator")
    made = operator.json("certs", "init")
    assert {"localhost", "127.0.0.1", "::1"} <= set(made["hosts"])
    assert not made["renewed"]
    assert Path(made["key_file"]).is_relative_to(operator.folder / "s")
    again = operator("certs", "init", "--host", "gpu1").stdout
    assert "kept" in again
    assert "made for gpu1" in again
    assert "host=" in operator("certs", "init", "--host", "a b", expect=2).stderr


def test_without_the_library_the_cure_is_named(folder: Path) -> None:
    operator = person(folder, "operator")
    (operator.folder / "cryptography.py").write_text("raise ImportError('not here')\n")
    hidden = attrs.evolve(operator, variables={"PYTHONPATH": str(operator.folder)})
    assert "pip install 'hasfaas[network]'" in hidden("certs", "init", expect=5).stderr

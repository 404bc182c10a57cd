"""Tokens of a cluster: written from anywhere, and what a gateway makes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from hasfaas.backends.cluster.shared_store import SharedStore
from hasfaas.backends.cluster.shared_tokens import SharedTokens
from hasfaas.core import token_file, tokens
from hasfaas.core.errors import AuthError, ConflictError, InvalidRequestError, NotFoundError
from hasfaas.serving.access import Access


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield f"file://{tmp_path}/state" if request.param == "file" else f"memory://{tmp_path.name}"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def made(name: str, *scopes: str) -> tuple[tokens.Token, tokens.Grant]:
    return tokens.create(name, scopes or ("invoke",), now_s=1.5)


def test_what_was_added_is_read_again_and_taken_back(url: str) -> None:
    assert SharedTokens(url).read() == {}
    _, grant = made("a", "deploy", "read")
    SharedTokens(url).add(grant)
    SharedTokens(url).add(made("b")[1])
    assert SharedTokens(url).read()["a"] == grant
    with pytest.raises(InvalidRequestError, match="token revoke a"):
        SharedTokens(url).add(made("a")[1])
    SharedTokens(url).remove("a")
    assert set(SharedTokens(url).read()) == {"b"}
    with pytest.raises(NotFoundError, match=f"no token 'a' in {url}/tokens.json; there are: b"):
        SharedTokens(url).remove("a")


def test_a_revocation_reaches_the_gateway_with_its_next_look(url: str, tmp_path: Path) -> None:
    token, grant = made("first")
    own = tmp_path / "own" / "tokens.json"
    token_file.add(own, grant)
    kept = SharedTokens(url)
    assert not kept.pull(own), "none there: its own stay"
    kept.begin(own.read_bytes())
    access = Access(own, now_s=lambda: 2.0)
    shown = [("authorization", f"Bearer {token.text}")]
    SharedTokens(url).add(made("second")[1])
    assert kept.pull(own)
    assert not kept.pull(own)
    assert access.grant(shown) == grant
    SharedTokens(url).remove("first")
    assert kept.pull(own)
    with pytest.raises(AuthError, match="revoked"):
        access.grant(shown)
    assert own.stat().st_mode & 0o777 == 0o600


def test_a_later_gateway_does_not_bring_back_what_was_revoked(url: str) -> None:
    _, grant = made("first")
    start = token_file.text({"first": grant})
    SharedTokens(url).begin(start)
    SharedTokens(url).remove("first")
    SharedTokens(url).begin(start)
    assert SharedTokens(url).read() == {}


def test_damaged_tokens_are_named_not_overwritten_and_let_nobody_in(url: str, tmp_path: Path) -> None:
    token, grant = made("a")
    kept = SharedTokens(url)
    kept.add(grant)
    own = tmp_path / "own" / "tokens.json"
    kept.pull(own)
    access = Access(own, now_s=lambda: 2.0)
    kept._folder.write("tokens.json", b"{")
    for attempt in (kept.read, lambda: kept.add(made("b")[1]), lambda: kept.remove("a")):
        with pytest.raises(AuthError, match=f"{url}/tokens.json is damaged"):
            attempt()
    assert kept._folder.read("tokens.json") == b"{"
    assert kept.pull(own)
    with pytest.raises(AuthError):
        access.grant([("authorization", f"Bearer {token.text}")])


def test_shells_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """On a file system; the next test is about other stores."""
    url = f"file://{tmp_path}/state"

    def add(name: str) -> None:
        for number in range(5):
            SharedTokens(url).add(made(f"{name}-{number}")[1])

    threads = [threading.Thread(target=add, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(SharedTokens(url).read()) == 15


def test_a_shell_whose_write_was_replaced_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = SharedTokens(url)
    write = kept._folder.write

    def raced(name: str, content: bytes) -> None:
        write(name, content)
        write(name, token_file.text({"other": made("other")[1]}))

    monkeypatch.setattr(kept._folder, "write", raced)
    with pytest.raises(ConflictError, match="token list"):
        kept.add(made("a")[1])


def test_tokens_and_what_is_deployed_live_side_by_side(url: str, tmp_path: Path) -> None:
    SharedTokens(url).add(made("a")[1])
    SharedStore(url, tmp_path / "a")
    SharedStore(url, tmp_path / "b")
    assert set(SharedTokens(url).read()) == {"a"}

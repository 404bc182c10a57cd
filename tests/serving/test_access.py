"""Who is let in, by the file as it stands at that moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasfaas.core import token_file, tokens
from hasfaas.core.errors import AuthError
from hasfaas.core.tokens import Token
from hasfaas.serving.access import HEADER, SCOPE_OF, SERVICE, Access
from hasfaas.wire.v1 import functions_pb2


class Site:
    """A file of tokens, and an `Access` to it whose clock stands still."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 1000.0
        self.token = self.add("first", *tokens.SCOPES)
        self.access = Access(path, now_s=lambda: self.now_s)

    def add(self, name: str, *scopes: str, expires_s: float | None = None) -> Token:
        made, grant = tokens.create(name, scopes, now_s=self.now_s, expires_s=expires_s)
        token_file.add(self.path, grant)
        return made

    def refusal(self, token: Token, method: str = "GetStatus") -> str:
        """The reason why a token is refused, "" when it is not."""
        try:
            self.access.admit(f"/{SERVICE}/{method}", [(HEADER, f"Bearer {token.text}")])
        except AuthError as exc:
            return exc.reason
        return ""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "tokens.json")


def test_every_method_has_a_right_and_no_right_is_unknown() -> None:
    methods = {method.name for method in functions_pb2.DESCRIPTOR.services_by_name["FunctionService"].methods}
    assert set(SCOPE_OF) == methods
    assert set(SCOPE_OF.values()) == set(tokens.SCOPES)


@pytest.mark.parametrize("scope", tokens.SCOPES)
def test_a_token_may_what_its_scope_says_and_nothing_else(site: Site, scope: str) -> None:
    token = site.add("one", scope)
    for method, wanted in SCOPE_OF.items():
        assert site.refusal(token, method) == ("" if wanted == scope else "SCOPE"), method
    assert site.refusal(token, "AddedLater") == "SCOPE"


def test_other_services_want_a_token_too(site: Site) -> None:
    method = "/grpc.health.v1.Health/Check"
    with pytest.raises(AuthError) as caught:
        site.access.admit(method, [])
    assert caught.value.reason == "NO_TOKEN"
    assert site.access.admit(method, [(HEADER, f"Bearer {site.token.text}")]).name == "first"


@pytest.mark.parametrize("value", ["", "Bearer ", "bearer {}", "Basic {}", "{}", "Bearer {} x"])
def test_a_header_of_another_form_is_refused(site: Site, value: str) -> None:
    with pytest.raises(AuthError) as caught:
        site.access.grant([(HEADER, value.format(site.token.text))])
    assert caught.value.reason == "BAD_TOKEN"


def test_two_tokens_are_none(site: Site) -> None:
    shown = (HEADER, f"Bearer {site.token.text}")
    with pytest.raises(AuthError, match="one token"):
        site.access.grant([shown, shown])


def test_a_new_token_is_good_at_once_and_a_revoked_one_bad_at_once(site: Site) -> None:
    grant = site.access.grant([(HEADER, f"Bearer {site.token.text}")])
    late = site.add("late", "read")
    assert site.refusal(late) == ""
    token_file.remove(site.path, "first")
    assert site.refusal(site.token) == "BAD_TOKEN"
    assert not site.access.stands(grant)
    # The name is given anew: the old token is as bad as before.
    site.add("first", "read")
    assert site.refusal(site.token) == "BAD_TOKEN"
    assert not site.access.stands(grant)


def test_a_token_ends_with_its_time(site: Site) -> None:
    token = site.add("brief", "read", expires_s=1010.0)
    grant = site.access.grant([(HEADER, f"Bearer {token.text}")])
    assert site.access.stands(grant)
    site.now_s = 1010.0
    assert site.refusal(token) == "EXPIRED_TOKEN"
    assert not site.access.stands(grant)


@pytest.mark.parametrize("harm", ["gone", "open", "damaged"])
def test_a_file_that_cannot_be_used_lets_nobody_in_until_it_can(site: Site, harm: str) -> None:
    kept = site.path.read_bytes()
    if harm == "gone":
        site.path.unlink()
    elif harm == "open":
        site.path.chmod(0o644)
    else:
        site.path.write_bytes(b"{")
    assert site.refusal(site.token) == "BAD_TOKEN"
    assert site.refusal(site.token) == "BAD_TOKEN"
    site.path.write_bytes(kept)
    site.path.chmod(0o600)
    assert site.refusal(site.token) == ""


def test_without_a_file_there_is_no_access(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"tokens\.json"):
        Access(tmp_path / "tokens.json")

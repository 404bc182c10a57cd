from __future__ import annotations

import attrs
import pytest

from hasfaas.core import tokens
from hasfaas.core.errors import AuthError, InvalidRequestError
from hasfaas.core.tokens import Grant, Token


def made(name: str = "laptop", *scopes: str, expires_s: float | None = None) -> tuple[Token, Grant]:
    return tokens.create(name, scopes or ("invoke",), now_s=100.0, expires_s=expires_s)


def test_a_token_is_known_by_what_is_kept_of_it() -> None:
    token, grant = made("a-1", "read", "invoke")
    assert tokens.parse(token.text) == token
    assert tokens.parse(f"{token.text}\n") == token
    assert tokens.check({"a-1": grant}, token.text, now_s=1e12) is grant
    assert grant.scopes == ("invoke", "read")


def test_what_is_kept_or_shown_gives_no_secret_away() -> None:
    token, grant = made("laptop", "deploy")
    secret = token.secret
    assert secret not in (grant.salt, grant.digest, grant.signing_key)
    for text in (repr(token), str(token), repr(grant)):
        assert secret.hex() not in text
        assert token.text.rpartition(".")[2] not in text
        assert str(secret) not in text
    assert made()[0].secret != made()[0].secret
    assert made()[1].salt != made()[1].salt


def test_only_a_token_that_may_deploy_has_a_signing_key() -> None:
    token, grant = made("laptop", "deploy")
    assert grant.signing_key == token.signing_key != token.secret
    assert made("laptop", "invoke", "read")[1].signing_key is None


def refusal(grants: dict[str, Grant], text: str, now_s: float = 0.0) -> AuthError:
    with pytest.raises(AuthError) as caught:
        tokens.check(grants, text, now_s=now_s)
    assert text.rpartition(".")[2] not in caught.value.message or not text
    return caught.value


def test_unknown_wrong_and_forged_tokens_are_refused_alike() -> None:
    token, grant = made()
    grants = {"laptop": grant}
    other, _ = made()
    assert refusal(grants, other.text).reason == "BAD_TOKEN"
    assert refusal(grants, attrs.evolve(token, name="desk").text).reason == "BAD_TOKEN"
    assert refusal({}, token.text).reason == "BAD_TOKEN"
    # The empty name must not meet the stand-in for unknown names, whose salt and digest anybody knows.
    assert refusal(grants, attrs.evolve(token, name="").text).reason == "BAD_TOKEN"


@pytest.mark.parametrize(
    "text", ["", "x", "hf1.", "hf1.laptop.", "hf1.laptop.AAAA", "hf2.laptop." + "A" * 43, "é" * 40]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(AuthError, match="not a token") as caught:
        tokens.parse(text)
    assert caught.value.reason == "BAD_TOKEN"


def test_a_token_is_good_until_its_time_is_over() -> None:
    token, grant = made(expires_s=200.0)
    assert tokens.check({"laptop": grant}, token.text, now_s=199.9) is grant
    assert refusal({"laptop": grant}, token.text, now_s=200.0).reason == "EXPIRED_TOKEN"
    # Whoever shows a wrong secret is not told that the name has expired.
    assert refusal({"laptop": grant}, made()[0].text, now_s=200.0).reason == "BAD_TOKEN"


def test_a_right_that_was_not_given_is_told() -> None:
    _, grant = made("laptop", "invoke", "read")
    grant.require("read")
    with pytest.raises(AuthError, match=r"gives invoke, read and not deploy.*--scopes deploy") as caught:
        grant.require("deploy")
    assert caught.value.reason == "SCOPE"


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "a--b", "a.b", "../x", "a" * 65])
def test_a_name_that_cannot_be_is_told(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="name="):
        made(name)


@pytest.mark.parametrize("scopes", [[], ["root"], ["invoke", ""]])
def test_a_scope_that_cannot_be_is_told(scopes: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="deploy,invoke,read"):
        tokens.create("laptop", scopes, now_s=0.0)

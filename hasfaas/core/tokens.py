"""Tokens: what a caller on another machine shows, and the little of it that a gateway keeps.

A token is a name and a secret of 256 random bits. A gateway keeps a salted hash of the secret, and of a token that may deploy
also a key derived from it, which checks signatures; neither gives the secret back. Law: secrets are compared in constant time
and never written into a message.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence

import attrs

from hasfaas.core.errors import AuthError, InvalidRequestError

SCOPES = ("deploy", "invoke", "read")
"""deploy: deploy, scale, delete, profile. invoke: calls. read: list, status, logs, explain."""
NO_TOKEN, BAD_TOKEN, EXPIRED_TOKEN, SCOPE = "NO_TOKEN", "BAD_TOKEN", "EXPIRED_TOKEN", "SCOPE"
SECRET_BYTES = 32
SALT_BYTES = 16
# Longer than any token, and short enough to be looked at without a thought.
MOST_CHARACTERS = 256
_FORM = "hf1"
_NAME = re.compile(r"[a-z0-9](-?[a-z0-9])*", re.ASCII)
_MOST_NAME = 64
_KEY_DOMAIN = b"hasfaas/token-signing-key/v1"


@attrs.frozen
class Token:
    """What the caller holds."""

    name: str
    secret: bytes = attrs.field(repr=False)

    @property
    def text(self) -> str:
        """The token as its owner keeps it and as it travels."""
        return f"{_FORM}.{self.name}.{base64.urlsafe_b64encode(self.secret).rstrip(b'=').decode()}"

    @property
    def signing_key(self) -> bytes:
        """The key that this token signs deploys with."""
        return hmac.digest(self.secret, _KEY_DOMAIN, "sha256")


@attrs.frozen
class Grant:
    """What the gateway keeps of a token. Instants are Unix seconds of the gateway's own clock; None never expires."""

    name: str
    scopes: tuple[str, ...]
    salt: bytes = attrs.field(repr=False)
    digest: bytes = attrs.field(repr=False)
    created_s: float
    expires_s: float | None = None
    signing_key: bytes | None = attrs.field(default=None, repr=False)

    def expired(self, now_s: float) -> bool:
        """Whether its time is over."""
        return self.expires_s is not None and now_s >= self.expires_s

    def require(self, scope: str) -> None:
        """Raises AuthError (SCOPE) unless the token gives this right."""
        if scope not in self.scopes:
            raise AuthError(
                f"token {self.name!r} gives {', '.join(self.scopes)} and not {scope}; ask for one made with "
                f"`hasfaas token create NAME --scopes {scope}`",
                reason=SCOPE,
            )


def create(name: str, scopes: Sequence[str], *, now_s: float, expires_s: float | None = None) -> tuple[Token, Grant]:
    """A new token, and what a gateway keeps of it. Raises InvalidRequestError for a name or a scope that cannot be."""
    if not _NAME.fullmatch(name) or len(name) > _MOST_NAME:
        raise InvalidRequestError(
            f"name={name!r}: give a token at most {_MOST_NAME} small letters and digits, with single - in between"
        )
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise InvalidRequestError(f"scopes={','.join(scopes)!r}: give some of {','.join(SCOPES)}, with commas between")
    token = Token(name, secrets.token_bytes(SECRET_BYTES))
    salt = secrets.token_bytes(SALT_BYTES)
    grant = Grant(
        name=name,
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        salt=salt,
        digest=_digest(salt, token.secret),
        created_s=now_s,
        expires_s=expires_s,
        signing_key=token.signing_key if "deploy" in scopes else None,
    )
    return token, grant


def parse(text: str) -> Token:
    """The token in a text. Raises AuthError (BAD_TOKEN) for anything else, without repeating it."""
    form, _, rest = text.strip().partition(".")
    name, _, secret = rest.partition(".")
    if form == _FORM and len(text) <= MOST_CHARACTERS and _NAME.fullmatch(name):
        try:
            found = base64.b64decode(secret + "=" * (-len(secret) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            found = b""
        if len(found) == SECRET_BYTES:
            return Token(name, found)
    raise AuthError(
        f"this is not a token: one begins with `{_FORM}.` and was printed by `hasfaas token create`", reason=BAD_TOKEN
    )


def check(grants: Mapping[str, Grant], text: str, *, now_s: float) -> Grant:
    """The grant of the token in `text`. Raises AuthError: BAD_TOKEN for one that is unknown, wrong or revoked, EXPIRED_TOKEN.

    An unknown name takes the time of a wrong secret.
    """
    token = parse(text)
    grant = grants.get(token.name, _NOBODY)
    right = hmac.compare_digest(_digest(grant.salt, token.secret), grant.digest)
    if grant is _NOBODY or not right:
        raise AuthError(
            f"the gateway does not know this token {token.name!r}: it was revoked, or is another gateway's",
            reason=BAD_TOKEN,
        )
    if grant.expired(now_s):
        raise AuthError(f"token {token.name!r} has expired: ask for a new one", reason=EXPIRED_TOKEN)
    return grant


def _digest(salt: bytes, secret: bytes) -> bytes:
    # One round: the secret is 256 random bits, which nobody guesses however fast a guess is.
    return hashlib.sha256(b"hasfaas/token/v1" + salt + secret).digest()


_NOBODY = Grant("", (), bytes(SALT_BYTES), bytes(32), 0.0)

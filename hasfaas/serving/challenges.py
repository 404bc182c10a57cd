"""Words that make each signed deploy good once: given out fresh, for one token, and taken back with the deploy.

A clock would do less: two hosts' clocks differ, and a gateway that starts anew has forgotten what it has seen.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict

import attrs

from hasfaas.core.errors import AuthError

WORD_BYTES = 32
# A large bundle on a slow line takes minutes.
GOOD_FOR_S = 300.0
MOST_PER_TOKEN = 64


@attrs.frozen
class _Given:
    token: str
    at_s: float


class Challenges:
    """Those that were given and not used yet. A token has at most 64, the oldest goes first."""

    def __init__(self) -> None:
        self._given: OrderedDict[bytes, _Given] = OrderedDict()

    def give(self, token: str, *, now_s: float) -> bytes:
        """A new word for one deploy by `token`. `now_s` is monotonic."""
        while self._given and now_s - next(iter(self._given.values())).at_s > GOOD_FOR_S:
            self._given.popitem(last=False)
        own = [word for word, given in self._given.items() if given.token == token]
        for word in own[: max(0, len(own) - MOST_PER_TOKEN + 1)]:
            del self._given[word]
        word = secrets.token_bytes(WORD_BYTES)
        self._given[word] = _Given(token, now_s)
        return word

    def take(self, word: bytes, token: str, *, now_s: float) -> None:
        """Uses a word up. Raises AuthError (DEPLOY_REPLAYED) unless it was given to `token`, lately, and not used."""
        given = self._given.pop(word, None)
        if given is None or given.token != token or now_s - given.at_s > GOOD_FOR_S:
            raise AuthError(
                f"this deploy repeats one that came before, or was signed more than {GOOD_FOR_S:g} s ago; deploy again",
                reason="DEPLOY_REPLAYED",
            )

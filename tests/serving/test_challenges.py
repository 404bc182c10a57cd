from __future__ import annotations

import pytest

from hasfaas.core.errors import AuthError
from hasfaas.serving.challenges import GOOD_FOR_S, MOST_PER_TOKEN, Challenges


def refused(challenges: Challenges, word: bytes, token: str = "a", now_s: float = 0.0) -> None:
    with pytest.raises(AuthError) as caught:
        challenges.take(word, token, now_s=now_s)
    assert caught.value.reason == "DEPLOY_REPLAYED"


def test_a_word_is_good_once() -> None:
    challenges = Challenges()
    word, other = challenges.give("a", now_s=0.0), challenges.give("a", now_s=0.0)
    assert word != other
    challenges.take(word, "a", now_s=1.0)
    refused(challenges, word)
    challenges.take(other, "a", now_s=1.0)


def test_a_word_is_good_for_its_token_and_its_time() -> None:
    challenges = Challenges()
    refused(challenges, challenges.give("a", now_s=0.0), token="b")
    refused(challenges, challenges.give("a", now_s=0.0), now_s=GOOD_FOR_S + 1)
    refused(challenges, b"")
    refused(challenges, bytes(32))
    challenges.take(challenges.give("a", now_s=0.0), "a", now_s=GOOD_FOR_S)


def test_one_token_cannot_fill_the_memory_nor_push_out_another() -> None:
    challenges = Challenges()
    theirs = challenges.give("b", now_s=0.0)
    words = [challenges.give("a", now_s=0.0) for _ in range(3 * MOST_PER_TOKEN)]
    refused(challenges, words[0])
    challenges.take(words[-MOST_PER_TOKEN], "a", now_s=0.0)
    challenges.take(theirs, "b", now_s=0.0)

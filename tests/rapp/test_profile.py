"""The profile as a value: what it holds, how it travels, and that there is none without measurements."""

from __future__ import annotations

import json
from typing import Any

import attrs
import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError, NotFoundError
from hasfaas.core.version import VERSION
from hasfaas.rapp.probe import Point, Probe
from hasfaas.rapp.profile import Profile, ProfiledDevice, known, law_error_percent, state_of

DEVICE = ProfiledDevice("cpu", "cpu0", "2 cores")
PROBES = (
    Probe(Point(1, 100.0), 4.0, 4.0, 10, 0.01),
    Probe(Point(4, 100.0), 10.0, None, 10, 0.01),
    Probe(Point(1, 50.0), 7.0, None, 10, 0.01),
    Probe(Point(1, 100.0, 50.0), 4.0, 8.8, 10, 0.01),
    Probe(Point(4, 100.0, 25.0), 10.0, 40.0, 10, 0.01),
)


def profile() -> Profile:
    return Profile.fitted("app.f", "v1", DEVICE, PROBES, (1, 2, 4), (50.0, 100.0))


def test_a_fitted_profile() -> None:
    made = profile()
    assert (made.state, made.law, made.hasfaas) == ("few-shot", "lane", VERSION)
    assert made.probes == PROBES
    # 8 ms predicted where 8.8 were measured, and 40 where 40 were.
    assert made.law_error_percent == pytest.approx(100.0 * 0.5 * (1.0 - 8.0 / 8.8))
    assert np.array_equal(made.current().hold_ms, made.surface.hold_ms)
    assert law_error_percent(PROBES[:3]) is None


def test_live_batches_correct_it() -> None:
    made = profile()
    for _ in range(40):
        made = made.observed(1, 100.0, 5.2)
    assert made.current().hold(1, 100.0) == pytest.approx(5.2, rel=0.03)
    assert made.surface.hold(1, 100.0) == pytest.approx(4.0, rel=0.03)
    assert made.correction is not None
    assert made.correction.drifted


def test_json_and_back() -> None:
    for made in (profile(), profile().observed(2, 50.0, 9.0)):
        data = json.loads(json.dumps(made.to_dict()))
        back = Profile.from_dict(data)
        assert back.to_dict() == made.to_dict()
        assert back.probes == made.probes
        assert np.array_equal(back.current().hold_ms, made.current().hold_ms)


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"form": 2}, "UNKNOWN_FORM", "has the form 2, this version reads 1"),
        ({"state": "guessed"}, "BAD_PROFILE", "state='guessed'"),
        ({"law": "launch"}, "BAD_PROFILE", "law='launch'"),
        ({"device": {"kind": "cpu"}}, "BAD_PROFILE", "cannot be read"),
        ({"probes": [{}]}, "BAD_PROFILE", "lacks 'point'"),
        ({"surface": {}}, "BAD_SURFACE", "a surface has the keys"),
    ],
)
def test_what_is_no_profile(change: dict[str, Any], reason: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        Profile.from_dict({**profile().to_dict(), **change})
    assert caught.value.reason == reason


def test_missing_keys_and_other_values() -> None:
    data = profile().to_dict()
    del data["surface"]
    with pytest.raises(InvalidRequestError, match="lacks 'surface'"):
        Profile.from_dict(data)
    with pytest.raises(InvalidRequestError, match="form 'list'"):
        Profile.from_dict([])  # type: ignore[arg-type]


def test_without_a_profile_there_is_no_number() -> None:
    assert state_of(None) == "unprofiled"
    assert state_of(attrs.evolve(profile(), state="live")) == "live"
    with pytest.raises(NotFoundError, match=r"`hasfaas profile app\.f`") as caught:
        known(None, "app.f")
    assert caught.value.reason == "UNPROFILED"

"""Windows over what was observed, whenever that was."""

from __future__ import annotations

import numpy as np
import pytest

from hasfaas.scaling.baselines.history import History
from hasfaas.scaling.baselines.tick import Tick
from tests.scaling.baselines.stage import Function, Stage


def _push(history: History, stage: Stage, now_s: float, *values: float) -> None:
    stage.last_s, stage.now_s = stage.now_s, now_s
    history.push(stage.observe(), np.array(values))


def test_an_interval_counts_for_the_part_of_it_that_lies_in_the_window() -> None:
    history, stage = History(10.0), Stage([Function()])
    _push(history, stage, 4.0, 40.0)
    _push(history, stage, 6.0, 2.0)
    # The last 4 s: half of the first interval (20) and all of the second (2), over 4 s.
    assert history.rate(4.0) == pytest.approx([22.0 / 4.0])
    # No more than 6 s were observed.
    assert history.rate(10.0) == pytest.approx([42.0 / 6.0])
    assert history.covers(6.0)
    assert not history.covers(6.1)


def test_means_and_greatest_are_of_instants_in_the_window() -> None:
    history, stage = History(4.0), Stage([Function()])
    for now_s, seen in ((2.0, 9.0), (4.0, 3.0), (6.0, 1.0)):
        _push(history, stage, now_s, seen)
    assert history.mean(4.0) == pytest.approx([2.0])  # the instant 2 s has left it
    assert history.greatest(4.0) == pytest.approx([3.0])
    assert history.mean(2.0) == pytest.approx([1.0])


def test_functions_come_and_go() -> None:
    history, stage = History(10.0), Stage([Function("a"), Function("b")])
    _push(history, stage, 1.0, 1.0, 2.0)
    stage.functions = [Function("b"), Function("c")]
    _push(history, stage, 2.0, 4.0, 6.0)
    assert history.rate(10.0) == pytest.approx([3.0, 3.0])


def test_the_first_instant_has_no_rate() -> None:
    history, stage = History(10.0), Stage([Function()])
    _push(history, stage, 0.0, 7.0)
    assert history.rate(10.0) == pytest.approx([0.0])


def test_a_tick_is_due_once_a_period() -> None:
    tick = Tick(2.0)
    assert [tick.due(now_s) for now_s in (0.0, 1.0, 2.0, 3.5, 4.5, 6.5)] == [True, False, True, False, True, True]

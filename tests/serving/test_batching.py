from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.spec import Batch
from hasfaas.serving.batching import PIPELINE_DEPTH, Send, Wait, decide

EIGHT = Batch(max_size=8)
PATIENT = Batch(max_size=8, max_wait_ms=50)


@pytest.mark.parametrize(
    ("queued", "waited_ms", "batch", "executions", "decision"),
    [
        # Without batching: one call an execution, and one ahead so that the lane does not idle.
        (5, 0, None, 0, Send(1)),
        (5, 0, None, 1, Send(1)),
        (5, 0, None, 2, Wait()),
        # An idle replica takes what is there, up to a full batch.
        (1, 0, EIGHT, 0, Send(1)),
        (7, 0, EIGHT, 0, Send(7)),
        (8, 0, EIGHT, 0, Send(8)),
        (100, 0, EIGHT, 0, Send(8)),
        # A busy one gets ahead only what costs no fill.
        (7, 1000, EIGHT, 1, Wait()),
        (8, 0, EIGHT, 1, Send(8)),
        (8, 0, EIGHT, 2, Wait()),
        # With patience an idle replica waits for a fuller batch, but not for a full one.
        (3, 0, PATIENT, 0, Wait(0.05)),
        (3, 20, PATIENT, 0, Wait(0.03)),
        (3, 50, PATIENT, 0, Send(3)),
        (8, 0, PATIENT, 0, Send(8)),
        (3, 1000, PATIENT, 1, Wait()),
        # Nothing to do.
        (0, 0, None, 0, Wait()),
        (0, 0, PATIENT, 0, Wait()),
    ],
)
def test_what_a_replica_gets(
    queued: int, waited_ms: float, batch: Batch | None, executions: int, decision: Send | Wait
) -> None:
    made = decide(queued, waited_ms / 1000, batch, executions)
    if isinstance(decision, Wait) and decision.delay_s is not None:
        assert isinstance(made, Wait)
        assert made.delay_s == pytest.approx(decision.delay_s)
    else:
        assert made == decision


@pytest.mark.parametrize(("executions", "decision"), [(0, Send(1)), (1, Wait()), (2, Wait())])
def test_a_stream_is_never_sent_ahead(executions: int, decision: Send | Wait) -> None:
    assert decide(5, 0.0, None, executions, streams=True) == decision


BATCHES = st.none() | st.builds(Batch, st.integers(1, 64), st.floats(0, 1000))
EVERYTHING = (st.integers(0, 200), st.floats(0, 10), BATCHES, st.integers(0, 4), st.booleans())


@given(*EVERYTHING)
def test_what_is_sent_is_there_fits_a_batch_and_has_a_place(
    queued: int, waited_s: float, batch: Batch | None, executions: int, streams: bool
) -> None:
    match decide(queued, waited_s, batch, executions, streams=streams):
        case Send(count):
            assert 1 <= count <= queued
            assert count <= (batch.max_size if batch else 1)
            assert executions < (1 if streams else PIPELINE_DEPTH)
        case Wait(delay_s):
            assert delay_s is None or (batch is not None and 0 < delay_s <= batch.max_wait_ms / 1000)


@given(*EVERYTHING)
def test_an_idle_replica_never_waits_for_ever_while_calls_do(
    queued: int, waited_s: float, batch: Batch | None, executions: int, streams: bool
) -> None:
    decision = decide(queued, waited_s, batch, 0, streams=streams)
    if queued and decision == Wait():
        pytest.fail("nothing would ever wake it")
    if isinstance(decision, Wait) and decision.delay_s is not None:
        # Computed in floating point, so by a microsecond later it is over.
        assert isinstance(decide(queued, waited_s + decision.delay_s + 1e-6, batch, 0, streams=streams), Send)


@given(*EVERYTHING)
def test_a_longer_queue_never_turns_sending_into_waiting(
    queued: int, waited_s: float, batch: Batch | None, executions: int, streams: bool
) -> None:
    if isinstance(decide(queued, waited_s, batch, executions, streams=streams), Send):
        assert isinstance(decide(queued + 1, waited_s, batch, executions, streams=streams), Send)

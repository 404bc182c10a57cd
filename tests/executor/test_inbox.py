"""A replica's socket from the replica's side, over a real socket pair. The test is the gateway."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import attrs
import pytest
from google.rpc import status_pb2

from hasfaas.core.errors import CancelledError
from hasfaas.executor.inbox import MAX_PIECES, Closed, Execution, Inbox
from hasfaas.wire import frames
from hasfaas.wire.frames import Buffer, Frame, FrameKind, FrameReader, Measure, RawPayload
from hasfaas.wire.status import from_status


def payload(blob: bytes = b"blob") -> RawPayload:
    return RawPayload(1, b"head", (len(blob),), (blob,) if blob else ())


@attrs.define(eq=False)
class Gateway:
    """The other end: says what a gateway says, and reads what a replica says."""

    sock: socket.socket
    reader: FrameReader = attrs.field(factory=FrameReader)

    def say(self, *pieces: Buffer) -> None:
        self.sock.sendall(b"".join(pieces))

    def execute(self, *call_ids: int, blob: bytes = b"blob") -> None:
        self.say(*frames.pack_execute([(call_id, payload(blob)) for call_id in call_ids]))

    def cancel(self, call_id: int) -> None:
        self.say(*frames.pack(FrameKind.CANCEL, call_id))

    def credit(self, call_id: int, items: int) -> None:
        self.say(*frames.pack(FrameKind.CREDIT, call_id, items))

    def shutdown(self) -> None:
        self.say(*frames.pack(FrameKind.SHUTDOWN))

    def read(self, count: int) -> list[Frame]:
        """Waits until so many frames have come."""
        found: list[Frame] = []
        while len(found) < count:
            taken = self.sock.recv_into(self.reader.buffer())
            assert taken, "the replica closed its end"
            found += self.reader.advance(taken)
        return found

    def silence(self) -> bool:
        """Whether nothing has come."""
        self.sock.setblocking(False)
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(20)


@attrs.frozen
class Line:
    inbox: Inbox
    gateway: Gateway


def _rest() -> None:
    """What a replica does before it waits; here nothing."""


@pytest.fixture
def line() -> Iterator[Line]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    with ours, theirs:
        yield Line(Inbox(ours, released=lambda segment: None), Gateway(theirs))


def ids(execution: Execution | None) -> list[int]:
    assert execution is not None
    return [item.call_id for item, _ in execution.items]


# -- work --------------------------------------------------------------------------------------------------------------


def test_work_comes_in_order_with_its_blobs(line: Line) -> None:
    line.gateway.execute(1, 2, blob=b"first")
    line.gateway.execute(3, blob=b"")
    first = line.inbox.next(_rest)
    assert first is not None
    assert ids(first) == [1, 2]
    assert [bytes(blob) for _, blob in first.items] == [b"first", b"first"]
    assert first.nbytes == 10
    assert ids(line.inbox.next(_rest)) == [3]


def test_next_waits_for_work(line: Line) -> None:
    timer = threading.Timer(0.05, lambda: line.gateway.execute(1))
    timer.start()
    assert ids(line.inbox.next(_rest)) == [1]
    timer.join()


def test_what_has_arrived_can_be_weighed_without_waiting(line: Line) -> None:
    assert line.inbox.peek_bytes() is None
    line.gateway.execute(1, blob=bytes(100))
    line.gateway.execute(2, blob=bytes(7))
    assert line.inbox.peek_bytes() == 100
    line.inbox.next(_rest)
    assert line.inbox.peek_bytes() == 7


def test_large_arguments_arrive_while_we_read(line: Line) -> None:
    blob = bytes(range(256)) * (1 << 14)
    sender = threading.Thread(target=line.gateway.execute, args=(1,), kwargs={"blob": blob})
    sender.start()
    execution = line.inbox.next(_rest)
    sender.join()
    assert execution is not None
    assert bytes(execution.items[0][1]) == blob


# -- taking back -------------------------------------------------------------------------------------------------------


def confirmed(frame: Frame) -> int:
    """The call that a frame confirms as taken back."""
    assert frame.kind is FrameKind.ERROR
    assert isinstance(from_status(status_pb2.Status.FromString(bytes(frame.body))), CancelledError)
    return frame.call_id


def test_a_cancellation_overtakes_the_work_it_cancels_and_is_confirmed(line: Line) -> None:
    """Until then the gateway counts the call as ours, and sends that much less."""
    line.gateway.execute(1)
    line.gateway.execute(2)
    line.gateway.execute(3)
    line.gateway.cancel(2)
    assert ids(line.inbox.next(_rest)) == [1]
    assert ids(line.inbox.next(_rest)) == [3]
    assert [confirmed(frame) for frame in line.gateway.read(1)] == [2]
    assert line.gateway.silence()


def test_of_a_batch_the_others_run(line: Line) -> None:
    line.gateway.execute(1, 2, 3)
    line.gateway.cancel(1)
    line.gateway.cancel(3)
    assert ids(line.inbox.next(_rest)) == [2]
    assert [confirmed(frame) for frame in line.gateway.read(2)] == [1, 3]


def test_a_batch_of_which_nothing_is_left_is_skipped(line: Line) -> None:
    line.gateway.execute(1, 2)
    line.gateway.cancel(1)
    line.gateway.cancel(2)
    line.gateway.execute(3)
    assert ids(line.inbox.next(_rest)) == [3]
    assert [confirmed(frame) for frame in line.gateway.read(2)] == [1, 2]


def test_the_running_call_can_ask_whether_it_was_taken_back(line: Line) -> None:
    line.gateway.execute(1)
    line.inbox.next(_rest)
    assert not line.inbox.cancelled(1)
    line.gateway.cancel(1)
    assert line.inbox.cancelled(1)
    line.inbox.forget(1)
    assert not line.inbox.cancelled(1)
    assert line.gateway.silence(), "who runs it answers it"


def test_news_of_calls_that_have_ended_leaves_nothing_behind(line: Line) -> None:
    line.gateway.execute(1)
    line.inbox.next(_rest)
    line.inbox.forget(1)
    for call_id in (1, 2, 3):
        line.gateway.cancel(call_id)
        line.gateway.credit(call_id, 5)
    line.inbox.poll()
    assert not line.inbox.cancelled(1)
    assert not line.inbox.spend_credit(1)
    assert (line.inbox._open, line.inbox._cancelled, line.inbox._credit) == ({}, set(), {})


# -- credit ------------------------------------------------------------------------------------------------------------


def test_each_item_costs_one_credit(line: Line) -> None:
    line.gateway.execute(1)
    line.gateway.credit(1, 2)
    line.inbox.next(_rest)
    assert [line.inbox.spend_credit(1) for _ in range(3)] == [True, True, False]
    line.gateway.credit(1, 1)
    assert [line.inbox.spend_credit(1) for _ in range(2)] == [True, False]


def test_who_has_no_credit_waits_until_something_comes(line: Line) -> None:
    line.gateway.execute(1)
    line.inbox.next(_rest)
    timer = threading.Timer(0.05, lambda: line.gateway.credit(1, 1))
    timer.start()
    line.inbox.wait()
    timer.join()
    assert line.inbox.spend_credit(1)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_we_end_after_what_we_were_sent(line: Line) -> None:
    line.gateway.execute(1)
    line.gateway.shutdown()
    assert ids(line.inbox.next(_rest)) == [1]
    assert line.inbox.next(_rest) is None
    assert line.inbox.next(_rest) is None


ASKING: list[Callable[[Inbox], object]] = [
    lambda inbox: inbox.next(_rest),
    lambda inbox: inbox.wait(),
    lambda inbox: inbox.poll(),
    lambda inbox: inbox.peek_bytes(),
    lambda inbox: inbox.cancelled(1),
    lambda inbox: inbox.spend_credit(1),
    lambda inbox: inbox.send([bytes(1 << 20)]),
]


@pytest.mark.parametrize("ask", ASKING)
def test_a_gateway_that_has_gone_is_noticed_whatever_we_do(line: Line, ask: Callable[[Inbox], object]) -> None:
    line.gateway.sock.close()
    with pytest.raises(Closed):
        ask(line.inbox)


@pytest.mark.parametrize("ask", ASKING[:2])
def test_a_gateway_that_goes_with_something_unread_is_noticed_too(line: Line, ask: Callable[[Inbox], object]) -> None:
    """Then the kernel says that the connection was reset."""
    line.inbox.send([b"never read"])
    line.gateway.sock.close()
    with pytest.raises(Closed):
        ask(line.inbox)


def test_a_gateway_that_goes_while_we_write_is_noticed(line: Line) -> None:
    timer = threading.Timer(0.05, line.gateway.sock.close)
    timer.start()
    with pytest.raises(Closed):
        line.inbox.send([bytes(64 << 20)])
    timer.join()


# -- writing -----------------------------------------------------------------------------------------------------------


def test_answers_go_out_whole_whatever_the_kernel_takes_at_once(line: Line) -> None:
    """More pieces than one vectored write may have, empty ones, and far more bytes than the socket's buffer."""
    pieces = tuple(bytes([mark % 256]) * (mark % 5000) for mark in range(3 * MAX_PIECES))
    whole = b"".join(pieces)
    given = RawPayload(1, b"head", (len(whole),), pieces)
    found: list[Frame] = []
    reader = threading.Thread(target=lambda: found.extend(line.gateway.read(2)))
    reader.start()
    line.inbox.send(frames.pack_payload(FrameKind.RESULT, 7, given))
    line.inbox.send(frames.pack(FrameKind.END, 8))
    reader.join()
    assert (found[0].kind, found[0].call_id) == (FrameKind.RESULT, 7)
    assert bytes(found[0].body) == whole
    assert found[1].call_id == 8


def test_nothing_to_send_is_sent_as_nothing(line: Line) -> None:
    line.inbox.send([])
    line.inbox.send([b"", bytearray(), memoryview(b"")])
    assert line.gateway.silence()


def test_a_point_to_measure_comes_in_turn_and_can_be_taken_back(line: Line) -> None:
    line.gateway.execute(7)
    line.gateway.say(*frames.pack_measure(8, Measure(4, 1.5, arguments=payload())))
    first, second = line.inbox.next(lambda: None), line.inbox.next(lambda: None)
    assert first is not None
    assert second is not None
    assert first.measure is None
    assert (second.call_id, second.measure) == (8, Measure(4, 1.5, arguments=payload()))
    assert not line.inbox.cancelled(8)
    line.gateway.cancel(8)
    assert line.inbox.cancelled(8)
    assert not line.inbox.ending
    line.gateway.shutdown()
    line.inbox.poll()
    assert line.inbox.ending


def test_it_is_quiet_until_something_arrives(line: Line) -> None:
    assert line.inbox.quiet(0.001)
    line.gateway.execute(7)
    assert not line.inbox.quiet(20.0)

"""The event loop: calls arrive, replicas run batches in their lanes, in virtual time. Written to be compiled.

Law: this moves arrays and decides nothing. Who gets what is `batching.ready` and `policies.precedes`, what an account may do
is quota.py's arithmetic: the same source, compiled. What else it takes from the product - the steps of a lane, the loop of
the router - a test holds equal to the product's own, call by call and account by account.

Of two events at one instant, slots come before arrivals, and lower slots before higher ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hasfaas.core.allocation import MAX_LANES
from hasfaas.executor import quota
from hasfaas.executor.quota import PPM, SlotState
from hasfaas.scaling.observation import Life
from hasfaas.serving import batching, policies
from hasfaas.simulator import alarms, costs, lane_steps
from hasfaas.simulator.records import DROPPED, FOREVER_NS, World

Array = np.ndarray[Any, Any]

# The same functions, by names that compiled code may use.
ready, precedes, settle = batching.ready, policies.precedes, quota.settle
accrue, close = costs.accrue, costs.close
acquire, renew, release, resize = lane_steps.acquire, lane_steps.renew, lane_steps.release, lane_steps.resize
schedule, cancel = alarms.schedule, alarms.cancel

# A slot keeps one execution beside the one that runs.
assert batching.PIPELINE_DEPTH == 2


def serve(world: World, until_ns: int) -> None:
    """All events up to `until_ns`, that one included."""
    clock = world.clock[0]
    while True:
        call_ns = next_call_ns(world)
        alarm_ns = world.slots[world.heap[0]].next_ns if clock.alarms else FOREVER_NS
        if min(call_ns, alarm_ns) > until_ns:
            break
        if alarm_ns <= call_ns:
            alarm(world, world.heap[0], alarm_ns, until_ns)
        else:
            arrive(world, call_ns, until_ns)
    clock.now_ns = until_ns


# -- calls ----------------------------------------------------------------------------------------------------------------


def next_call_ns(world: World) -> int:
    """When the next call arrives, as far as that is known by now."""
    if len(world.stages):
        return next_sending_ns(world)
    merged = world.clock[0].merged
    if merged == len(world.order):
        return FOREVER_NS
    return int(world.arrival_ns[world.functions[world.order[merged]].arrived])


def next_sending_ns(world: World) -> int:
    """The closed-loop client's next call; moves it on to its next stage once all calls of one are answered."""
    client, stages = world.client[0], world.stages
    while client.stage < len(stages):
        stage = stages[client.stage]
        if client.sent < stage.calls:
            if client.under_way >= stage.most:
                return FOREVER_NS
            return int(max(client.start_ns + np.int64(client.sent * stage.period_ns), client.freed_ns))
        if client.under_way:
            return FOREVER_NS
        client.start_ns = max(client.start_ns + stage.length_ns, client.freed_ns)
        client.stage += 1
        client.sent = 0
    return FOREVER_NS


def arrive(world: World, now_ns: int, until_ns: int) -> None:
    """One call arrives."""
    clock = world.clock[0]
    which = 0
    if len(world.stages):
        world.client[0].sent += 1
        world.client[0].under_way += 1
        world.arrival_ns[world.functions[0].arrived] = now_ns
    else:
        which = world.order[clock.merged]
    clock.merged += 1
    world.functions[which].arrived += 1
    pump(world, which, now_ns, until_ns)


def pump(world: World, which: int, now_ns: int, until_ns: int) -> None:
    """The router's loop: sends what may be sent."""
    function = world.functions[which]
    drop(world, which, now_ns)
    while function.head < function.arrived:
        chosen = pick(world, which)
        if chosen < 0:
            return
        slot = world.slots[chosen]
        count = ready(function.arrived - function.head, slot.batch, slot.executions, function.depth)
        if count == 0:
            return
        send(world, chosen, function.head, count, now_ns, until_ns)
        function.head += count


def pick(world: World, which: int) -> int:
    """policies.pick over the replicas of a function, -1 for none."""
    function = world.functions[which]
    found, executions, quota_ppm, began_ns = -1, function.depth, PPM + 1, 0
    for place in range(function.ready):
        index = world.ready[which, place]
        slot = world.slots[index]
        if slot.quota_ppm > 0 and precedes(
            slot.executions, slot.quota_ppm, slot.began_ns, executions, quota_ppm, began_ns
        ):
            found, executions, quota_ppm, began_ns = index, slot.executions, slot.quota_ppm, slot.began_ns
    return found


def drop(world: World, which: int, now_ns: int) -> None:
    """Calls that have queued too long leave."""
    function = world.functions[which]
    while function.head < function.arrived and now_ns - world.arrival_ns[function.head] >= function.drop_ns:
        world.done_ns[function.head] = DROPPED
        function.head += 1
        function.dropped += 1
        function.late += 1
        freed(world, 1, now_ns)


def freed(world: World, calls: int, now_ns: int) -> None:
    """The closed-loop client has its answers."""
    if len(world.stages):
        world.client[0].under_way -= calls
        world.client[0].freed_ns = now_ns


def send(world: World, index: int, first: int, count: int, now_ns: int, until_ns: int) -> None:
    """An execution goes to a replica: it starts, or waits behind the one that runs."""
    slot = world.slots[index]
    slot.in_flight += count
    function = world.functions[slot.function]
    function.in_flight += count
    function.executions += 1
    slot.executions += 1
    if slot.executions > 1:
        slot.ahead_first, slot.ahead_count = first, count
        return
    slot.began_ns = now_ns
    slot.first, slot.count = first, count
    world.lanes[slot.lane].busy += 1
    begin(world, index, now_ns, until_ns)


# -- executions -----------------------------------------------------------------------------------------------------------


def begin(world: World, index: int, now_ns: int, until_ns: int) -> None:
    """An execution starts: it wants the lane, which the replica holds already if one went before."""
    slot = world.slots[index]
    factors, interference = world.factors, world.clock[0].interference
    hold_ns = world.hold_ns[index, slot.count] * factors[slot.first % len(factors)]
    if interference > 1.0 and others_busy(world, slot.lane):
        hold_ns *= interference
    slot.left_ns = max(np.int64(np.rint(hold_ns)), 1)
    slot.ran_ns = now_ns
    if not world.lanes_law:
        slot.stamp_ns = now_ns
        schedule(world, index, now_ns + slot.left_ns)
    elif slot.state != SlotState.RUN or now_ns >= slot.lease_end_ns:
        step(world, index, now_ns, until_ns)
    else:
        follow(world, index, True, 0, now_ns, until_ns)


def others_busy(world: World, lane: int) -> bool:
    """Whether a replica in another lane of the same device has work."""
    first = lane // MAX_LANES * MAX_LANES
    for other in range(first, first + MAX_LANES):  # noqa: SIM110 - any() over a generator does not compile
        if other != lane and world.lanes[other].busy > 0:
            return True
    return False


def alarm(world: World, index: int, now_ns: int, until_ns: int) -> None:
    """A slot's next instant has come: its execution ends, its lease ends, or it wakes."""
    slot = world.slots[index]
    if world.lanes_law and slot.state != SlotState.RUN:
        step(world, index, now_ns, until_ns)
        return
    slot.left_ns -= now_ns - slot.ran_ns
    slot.ran_ns = now_ns
    if slot.left_ns > 0:
        step(world, index, now_ns, until_ns)
    else:
        finish(world, index, now_ns, until_ns)


def step(world: World, index: int, now_ns: int, until_ns: int) -> None:
    """Asks for the lane, or for its next lease, and wakes whom the answer names, who asks in turn."""
    while True:
        slot = world.slots[index]
        lane, seats = world.lanes[slot.lane], world.seats[slot.lane]
        holder = lane.holder - 1
        if slot.state == SlotState.RUN:
            granted, wake, timeout_ns = renew(world.slots, lane, seats, index, now_ns, world.timing)
        else:
            granted, wake, timeout_ns = acquire(world.slots, lane, seats, index, now_ns, world.timing)
        if holder >= 0 and holder != index:
            shorten(world, holder, now_ns)
        follow(world, index, granted, timeout_ns, now_ns, until_ns)
        if wake < 0 or world.slots[wake].state != SlotState.WAIT:
            return
        index = wake


def follow(world: World, index: int, granted: bool, timeout_ns: int, now_ns: int, until_ns: int) -> None:
    """Runs on or sleeps. Whoever is alone in its lane goes on from lease to lease here, up to `until_ns`: until then
    nothing but its own work can touch its account."""
    slot = world.slots[index]
    lane, seats = world.lanes[slot.lane], world.seats[slot.lane]
    while True:
        if granted:
            slot.ran_ns = now_ns
            if now_ns + slot.left_ns <= slot.lease_end_ns:
                schedule(world, index, now_ns + slot.left_ns)
                return
        at_ns = slot.lease_end_ns if granted else now_ns + timeout_ns
        if lane.seats > 1 or at_ns > until_ns:
            schedule(world, index, at_ns)
            return
        if granted:
            slot.left_ns -= at_ns - now_ns
            granted, _, timeout_ns = renew(world.slots, lane, seats, index, at_ns, world.timing)
        else:
            granted, _, timeout_ns = acquire(world.slots, lane, seats, index, at_ns, world.timing)
        now_ns = at_ns


def shorten(world: World, holder: int, now_ns: int) -> None:
    """Another has cut the holder's lease back."""
    slot = world.slots[holder]
    if slot.state == SlotState.RUN and slot.lease_end_ns < slot.next_ns:
        schedule(world, holder, max(slot.lease_end_ns, now_ns))


def finish(world: World, index: int, now_ns: int, until_ns: int) -> None:
    """An execution is over: its calls are answered, the replica goes on with the next, or gives its lane up."""
    slot = world.slots[index]
    function = world.functions[slot.function]
    if not world.lanes_law:
        charge(slot, now_ns)
    for call in range(slot.first, slot.first + slot.count):
        world.done_ns[call] = now_ns
        if now_ns - world.arrival_ns[call] + function.overhead_ns > function.slo_ns:
            function.late += 1
    function.completed += slot.count
    function.in_flight -= slot.count
    slot.in_flight -= slot.count
    slot.executions -= 1
    freed(world, slot.count, now_ns)
    if slot.executions:
        slot.began_ns = now_ns
        slot.first, slot.count = slot.ahead_first, slot.ahead_count
        begin(world, index, now_ns, until_ns)
    else:
        rest(world, index, now_ns, until_ns)
    pump(world, slot.function, now_ns, until_ns)


def rest(world: World, index: int, now_ns: int, until_ns: int) -> None:
    """A replica has nothing more to run."""
    slot = world.slots[index]
    lane = world.lanes[slot.lane]
    lane.busy -= 1
    cancel(world, index)
    if world.lanes_law:
        wake = release(world.slots, lane, world.seats[slot.lane], index, now_ns, world.timing)
        if wake >= 0:
            step(world, wake, now_ns, until_ns)
    if slot.life == Life.DRAINING:
        leave(world, index, now_ns)


# -- what a decision changes ----------------------------------------------------------------------------------------------
# Several things may be changed at one instant, so nobody runs ahead of it.


def attach(world: World, index: int) -> None:
    """A replica is ready: the router has it."""
    slot = world.slots[index]
    function = world.functions[slot.function]
    slot.life = Life.READY
    world.ready[slot.function, function.ready] = index
    function.ready += 1
    pump(world, slot.function, world.clock[0].now_ns, world.clock[0].now_ns)


def requota(world: World, index: int, quota_ppm: int) -> None:
    """A replica's quota changes, in force at once."""
    slot = world.slots[index]
    now_ns = world.clock[0].now_ns
    accrue(slot, world.clock[0], now_ns)
    if not world.lanes_law:
        charge(slot, now_ns)
        slot.quota_ppm = quota_ppm
    else:
        resize(world.slots, world.lanes[slot.lane], index, quota_ppm, now_ns, world.timing)
        if slot.state == SlotState.WAIT:
            step(world, index, now_ns, now_ns)
        elif slot.state == SlotState.RUN:
            shorten(world, index, now_ns)
    pump(world, slot.function, now_ns, now_ns)


def rebatch(world: World, index: int, batch: int) -> None:
    """A replica's greatest batch changes, from its next execution on."""
    world.slots[index].batch = batch
    pump(world, world.slots[index].function, world.clock[0].now_ns, world.clock[0].now_ns)


def drain(world: World, index: int) -> None:
    """A replica gets no further calls, and leaves once it has answered those it holds."""
    slot = world.slots[index]
    function, row = world.functions[slot.function], world.ready[slot.function]
    kept = 0
    for place in range(function.ready):
        if row[place] != index:
            row[kept] = row[place]
            kept += 1
    function.ready = kept
    slot.life = Life.DRAINING
    if slot.executions == 0:
        leave(world, index, world.clock[0].now_ns)


def leave(world: World, index: int, now_ns: int) -> None:
    """A replica ends."""
    slot = world.slots[index]
    lane, row = world.lanes[slot.lane], world.seats[slot.lane]
    close(slot, world.functions[slot.function], world.clock[0], now_ns)
    world.clock[0].gone += 1
    slot.gone_ns = now_ns
    slot.state = SlotState.FREE
    kept = 0
    for place in range(lane.seats):
        if row[place] != index:
            row[kept] = row[place]
            kept += 1
    lane.seats = kept


def look(world: World, rows: Array) -> None:
    """Brings accounts and queues to the present, so that they can be read, and ends an interval of the costs."""
    clock = world.clock[0]
    now_ns = clock.now_ns
    for which in range(len(world.functions)):
        drop(world, which, now_ns)
    for index in rows:
        slot = world.slots[index]
        if world.lanes_law:
            settle(slot, now_ns, world.timing)
        else:
            charge(slot, now_ns)
        if slot.state != SlotState.FREE:
            close(slot, world.functions[slot.function], clock, now_ns)


def audit(world: World, lane_ppm: Array, lane_units: Array, device_units: Array) -> int:
    """0 if the lanes are as they may be, and as they are said to be. 1: the quotas of a lane are not those of its replicas;
    2: they sum to more than all of it; 3: the lanes of a device have more units than it, or its occupancy is above 1."""
    for device in range(len(device_units)):
        units, occupied = 0, 0.0
        for lane in range(device * MAX_LANES, (device + 1) * MAX_LANES):
            held_ppm = 0
            for place in range(world.lanes[lane].seats):
                held_ppm += world.slots[world.seats[lane, place]].quota_ppm
            if held_ppm != lane_ppm[lane]:
                return 1
            if held_ppm > PPM or held_ppm < 0:
                return 2
            units += lane_units[lane]
            occupied += lane_units[lane] * (held_ppm / PPM)
        if units > device_units[device] or occupied > device_units[device] * (1.0 + 1e-9):
            return 3
    return 0


def charge(slot: Any, now_ns: int) -> None:
    """Without lanes a replica uses its quota of the time that it is busy."""
    if slot.executions:
        slot.used_ns += (now_ns - slot.stamp_ns) * slot.quota_ppm // PPM
        slot.stamp_ns = now_ns


STEPS = (
    *(charge, leave, freed, drop, shorten, follow, step, others_busy, begin, send),
    *(pick, pump, rest, finish, alarm, next_sending_ns, next_call_ns, arrive),
)

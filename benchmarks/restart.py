"""A member that holds many small keys, killed and started again: how long until it serves, and its memory then."""

from dataclasses import dataclass

from benchmarks.engines import Engine
from benchmarks.http2 import END_STREAM, HEADERS, RST_STREAM, Connection
from benchmarks.load import CheckFailed
from benchmarks.wire import PUT
from benchmarks.work import SMALL
from raftkv.pb import rpc_pb2 as pb

IN_FLIGHT = 200
KEYS, KEYS_END = b"/small/", b"/small0"


@dataclass(slots=True)
class Restarts:
    """What was measured, one figure for each restart."""

    seconds: list[float]
    resident_bytes: list[int]


def store_each(engine: Engine, count: int) -> None:
    """Store keys of 256 B, each by a put of its own.

    Raises:
        CheckFailed: not all of them are there.
    """
    leader = engine.leader()
    connection = Connection(leader.endpoint, PUT)
    sent = answered = 0
    try:
        while answered < count:
            while sent < count and sent - answered < IN_FLIGHT:
                request = pb.PutRequest(key=KEYS + b"%09d" % sent, value=SMALL)
                connection.request([request.SerializeToString()], last=True)
                sent += 1
            for one in connection.receive():
                if one.kind == RST_STREAM:
                    raise CheckFailed(f"a put was refused after {answered} of {count}")
                answered += one.kind == HEADERS and bool(one.flags & END_STREAM)
    finally:
        connection.close()
    found = _count(engine)
    if found != count:
        raise CheckFailed(f"{count} keys were stored, {found} are there")


def restart(engine: Engine, times: int) -> Restarts:
    """Kill and start the only member again and again.

    Raises:
        CheckFailed: keys are missing afterwards.
    """
    (member,) = engine.members
    expected = _count(engine)
    found = Restarts([], [])
    for _ in range(times):
        engine.settle()
        found.seconds.append(member.restart())
        if (count := _count(engine)) != expected:
            raise CheckFailed(f"{expected} keys were there before a restart, {count} after it")
        engine.settle()
        found.resident_bytes.append(member.resident_bytes())
    return found


def _count(engine: Engine) -> int:
    request = pb.RangeRequest(key=KEYS, range_end=KEYS_END, count_only=True)
    return engine.leader().connection.range(request).count

"""A member that holds many small keys, killed and started again: how long until it serves, and its memory then."""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import Message

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
    puts = (pb.PutRequest(key=KEYS + b"%09d" % number, value=SMALL) for number in range(count))
    call_each(engine.leader().endpoint, PUT, puts)
    found = _count(engine)
    if found != count:
        raise CheckFailed(f"{count} keys were stored, {found} are there")


def call_each(endpoint: str, path: str, requests: Iterable[Message]) -> None:
    """Call a method with each of these requests, many at once.

    Raises:
        CheckFailed: a call was refused.
    """
    connection = Connection(endpoint, path)
    waiting = iter(requests)
    under_way = answered = 0
    ended = False
    try:
        while under_way or not ended:
            while not ended and under_way < IN_FLIGHT:
                request = next(waiting, None)
                if request is None:
                    ended = True
                else:
                    connection.request([request.SerializeToString()], last=True)
                    under_way += 1
            for one in connection.receive() if under_way else ():
                if one.kind == RST_STREAM:
                    raise CheckFailed(f"{path} was refused after {answered} answers")
                if one.kind == HEADERS and one.flags & END_STREAM:
                    under_way -= 1
                    answered += 1
    finally:
        connection.close()


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

"""The load generator for requests that are not all alike, a process of its own: `python -m benchmarks.mixer PLAN`.

It reads and puts keys chosen at random, and looks at each answer: a read must find its key, as long a value as was put
and a revision that is no older than what was acknowledged of that key when the read began.
"""

import array
import contextlib
import gc
import random
import selectors
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.generator import Wrong, play
from benchmarks.http2 import DATA, END_STREAM, HEADERS, RST_STREAM, Connection, Frame
from benchmarks.wire import FRAME_HEAD_BYTES, PUT, RANGE
from raftkv.pb import rpc_pb2 as pb

PREFIX = b"/mixed/"
METHODS = (RANGE, PUT)
OVERDUE_SECONDS = 30.0
"""Without any answer, before the run is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What to do. keys: how many there are, all of them stored. reads: the part of the requests that read (0 to 1).

    rate: requests begun in a second, whatever becomes of those before; 0: one as soon as another is answered, with
    `streams` in flight on each connection.
    """

    endpoint: str
    connections: int
    streams: int
    keys: int
    value_bytes: int
    reads: float
    requests: int
    rate: float = 0.0
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was seen. p50_ms, p99_ms: how long a request took from the moment it was due. busy: the part of a processor
    the generator used (0 to 1)."""

    seconds: float
    puts: int
    p50_ms: float
    p99_ms: float
    busy: float


class Begun(NamedTuple):
    """A request under way. number: of its key. due: when it was to begin (ns). floor: no older revision is right."""

    number: int
    reading: bool
    due: int
    floor: int


class Driver:
    """Sends requests, and judges answers as they come."""

    def __init__(self, plan: Mix) -> None:
        self.plan = plan
        self.begun = self.answered = self.puts = 0
        self.latencies = array.array("q")
        self._rng = random.Random(plan.seed)
        self._acknowledged = [0] * plan.keys
        self._value = b"v" * plan.value_bytes

    def begin(self, line: "Line", due: int) -> None:
        """Queue the next request."""
        number = self._rng.randrange(self.plan.keys)
        key = key_of(number)
        reading = self._rng.random() < self.plan.reads
        request = pb.RangeRequest(key=key) if reading else pb.PutRequest(key=key, value=self._value)
        stream = line.connection.queue([request.SerializeToString()], last=True, method=0 if reading else 1)
        line.under_way[stream] = Begun(number, reading, due, self.floor(number))
        self.begun += 1
        self.puts += not reading

    def floor(self, number: int) -> int:
        """Return the newest revision of a key that was acknowledged."""
        return self._acknowledged[number]

    def end(self, begun: Begun, body: bytes) -> None:
        """Judge an answer. Raises Wrong."""
        self.latencies.append(time.perf_counter_ns() - begun.due)
        self.answered += 1
        if not body:
            raise Wrong(f"request {self.answered} was refused")
        message = body[FRAME_HEAD_BYTES:]
        if begun.reading:
            self._judge(begun, pb.RangeResponse.FromString(message))
        else:
            revision = pb.PutResponse.FromString(message).header.revision
            self._acknowledged[begun.number] = max(self._acknowledged[begun.number], revision)

    def _judge(self, begun: Begun, answer: pb.RangeResponse) -> None:
        key = key_of(begun.number)
        if len(answer.kvs) != 1 or answer.kvs[0].key != key or len(answer.kvs[0].value) != self.plan.value_bytes:
            raise Wrong(f"{key!r} was read as {str(answer)[:200]}")
        if answer.kvs[0].mod_revision < begun.floor:
            raise Wrong(f"{key!r} was put at revision {begun.floor}, then read as of {answer.kvs[0].mod_revision}")


class Line:
    """A connection and what is under way on it."""

    def __init__(self, driver: Driver) -> None:
        self.connection = Connection(driver.plan.endpoint, *METHODS)
        self.under_way: dict[int, Begun] = {}
        self._driver = driver
        self._bodies: dict[int, bytes] = {}

    def take(self) -> int:
        """Receive answers; returns how many. Raises Wrong, ConnectionError."""
        return sum(self._take(one) for one in self.connection.receive())

    def _take(self, one: Frame) -> bool:
        if one.kind == RST_STREAM:
            raise Wrong("a request was reset")
        if one.kind == DATA:
            self._bodies[one.stream] = self._bodies.get(one.stream, b"") + one.payload
        if one.kind in (DATA, HEADERS) and one.flags & END_STREAM:
            self._driver.end(self.under_way.pop(one.stream), self._bodies.pop(one.stream, b""))
            return True
        return False


def key_of(number: int) -> bytes:
    """Return the key of a number."""
    return PREFIX + b"%08d" % number


def drive(driver: Driver, lines: list[Line], selector: selectors.BaseSelector) -> None:
    """Send all requests and receive all answers. Raises Wrong, ConnectionError."""
    plan = driver.plan
    start = heard = time.perf_counter_ns()
    if not plan.rate:
        for line in lines:
            _refill(driver, line, plan.streams)
    while driver.answered < plan.requests:
        if plan.rate:
            _begin_due(driver, lines, start)
        waits = 0.001 if plan.rate and driver.begun < plan.requests else 1.0
        for key, _ in selector.select(waits):
            ready: Line = key.data
            ended = ready.take()
            heard = time.perf_counter_ns()
            if ended and not plan.rate:
                _refill(driver, ready, ended)
        if time.perf_counter_ns() - heard > OVERDUE_SECONDS * 1e9:
            raise Wrong(f"{driver.answered} of {driver.begun} requests were answered")


def _refill(driver: Driver, line: Line, count: int) -> None:
    now = time.perf_counter_ns()
    for _ in range(min(count, driver.plan.requests - driver.begun)):
        driver.begin(line, now)
    line.connection.flush()


def _begin_due(driver: Driver, lines: list[Line], start: int) -> None:
    plan = driver.plan
    due = int((time.perf_counter_ns() - start) / 1e9 * plan.rate) + 1
    touched = set()
    while driver.begun < min(due, plan.requests):
        line = lines[driver.begun % len(lines)]
        driver.begin(line, start + int(driver.begun / plan.rate * 1e9))
        touched.add(line)
    for line in touched:
        line.connection.flush()


def run(plan: Mix) -> Outcome:
    """Measure once. Raises Wrong, OSError (ConnectionError, TimeoutError)."""
    driver = Driver(plan)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        lines = [Line(driver) for _ in range(plan.connections)]
        for line in lines:
            stack.callback(line.connection.close)
            selector.register(line.connection.socket, selectors.EVENT_READ, line)
        gc.collect()
        gc.disable()
        wall, processor = time.perf_counter(), time.process_time()
        drive(driver, lines, selector)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    found = sorted(driver.latencies)
    return Outcome(
        seconds=wall,
        puts=driver.puts,
        p50_ms=found[len(found) // 2] / 1e6,
        p99_ms=found[len(found) * 99 // 100] / 1e6,
        busy=processor / wall,
    )


if __name__ == "__main__":
    sys.exit(play(sys.argv[1], Mix, run))

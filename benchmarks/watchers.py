"""The load generator of the watch benchmark, a process of its own: `python -m benchmarks.watchers PLAN`.

While it measures, it does no more than write puts and take bytes off sockets, each piece with the time of its arrival;
marks in the values are counted to know when all has come. What the bytes say is read afterwards: every watcher must
have received exactly the puts to its key, each once and in order. A put carries the time at which it was sent, so
latency is told by one clock.
"""

import array
import contextlib
import gc
import selectors
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.generator import Wrong, play
from benchmarks.http2 import DATA, END_STREAM, HEADERS, RECEIVE_BYTES, RST_STREAM, Connection, Frame, split
from benchmarks.wire import FRAME_HEAD_BYTES, PUT
from raftkv.pb import rpc_pb2 as pb

WATCH = "/etcdserverpb.Watch/Watch"
MARK = b"#event#"
VALUE_BYTES = 64
OVERDUE_SECONDS = 20.0
"""Without any event, before the run is given up."""
QUIET_SECONDS = 0.1
"""After the last event, for one too many to come."""
NANO = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """What to do. The watcher of number n watches key n modulo `keys`; put number n goes to that key as well.

    streams: on each connection; watchers: on each stream. prefix: whether they watch the prefix of their key, not the
    key. rate: puts begun in a second, or 0: as many as `window` allows, the number of puts whose events have not all
    arrived.
    """

    endpoint: str
    connections: int
    streams: int
    watchers: int
    keys: int
    prefix: bool
    puts: int
    rate: float
    window: int

    @property
    def fan_out(self) -> int:
        """Events of one put."""
        return self.connections * self.streams * self.watchers // self.keys

    def key(self, number: int) -> bytes:
        """Return the key of a put or a watcher."""
        return b"/watch/%05d/" % (number % self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was seen; p50_ms, p99_ms: from put to event. busy: the part of a processor the generator used (0 to 1)."""

    events: int
    seconds: float
    p50_ms: float
    p99_ms: float
    puts_per_second: float
    busy: float


class Marks:
    """Counts the marks in bytes that come in pieces."""

    def __init__(self) -> None:
        self._tail = b""

    def count(self, piece: bytes) -> int:
        """Return how many marks end in this piece."""
        seam = self._tail + piece[: len(MARK) - 1]
        self._tail = (self._tail + piece[1 - len(MARK) :])[1 - len(MARK) :]
        return piece.count(MARK) + seam.count(MARK)


class Messages:
    """The gRPC messages of one connection's streams, cut out of its frames."""

    def __init__(self) -> None:
        self._parts: dict[int, bytes] = {}

    def take(self, one: Frame) -> Iterator[bytes]:
        """Yield the messages that end in a frame. Raises Wrong: the stream ends."""
        if one.kind == RST_STREAM or (one.kind in (DATA, HEADERS) and one.flags & END_STREAM):
            raise Wrong("the server ended a watch stream")
        if one.kind != DATA:
            return
        data = self._parts.pop(one.stream, b"") + one.payload
        position = 0
        while position + FRAME_HEAD_BYTES <= len(data):
            begin = position + FRAME_HEAD_BYTES
            end = begin + int.from_bytes(data[position + 1 : begin], "big")
            if end > len(data):
                break
            yield data[begin:end]
            position = end
        if position < len(data):
            self._parts[one.stream] = data[position:]


class Listener:
    """A connection with watchers. What it receives is kept as it came, until `deliveries`."""

    def __init__(self, plan: Watching, place: int) -> None:
        self.connection = Connection(plan.endpoint, WATCH)
        self._messages = Messages()
        self._first: dict[int, int] = {}
        """The number of a stream's first watcher; its others follow, and the server numbers them from 0."""
        for stream in range(place * plan.streams, (place + 1) * plan.streams):
            number = stream * plan.watchers
            requests = [_create(plan, number + offset) for offset in range(plan.watchers)]
            self._first[self.connection.request(requests, last=False)] = number
        self._pieces: list[bytes] = []
        self._times: list[int] = []
        self._marks = Marks()

    def wait_created(self, count: int) -> None:
        """Return when this many watchers are created. Raises Wrong: one was refused."""
        while count:
            for one in self.connection.receive():
                for message in self._messages.take(one):
                    answer = pb.WatchResponse.FromString(message)
                    if not answer.created or answer.canceled:
                        raise Wrong(f"a watcher was not created: {answer.cancel_reason}")
                    count -= 1
        self._pieces.append(self.connection.rest)
        self._times.append(0)

    def take(self) -> int:
        """Receive what is there, and return how many events it completes. Raises ConnectionError."""
        piece = self.connection.socket.recv(RECEIVE_BYTES)
        if not piece:
            raise ConnectionError("the server hung up")
        self._times.append(time.perf_counter_ns())
        self._pieces.append(piece)
        return self._marks.count(piece)

    def deliveries(self) -> Iterator[tuple[int, int, pb.WatchResponse]]:
        """Yield what was received: a watcher's number, the time of arrival (ns), the answer."""
        data = b"".join(self._pieces)
        place, arrived = 0, len(self._pieces[0])
        for one, end in split(data):
            while arrived < end:
                place += 1
                arrived += len(self._pieces[place])
            for message in self._messages.take(one) if one.stream else ():
                answer = pb.WatchResponse.FromString(message)
                yield self._first[one.stream] + answer.watch_id, self._times[place], answer


def _create(plan: Watching, number: int) -> bytes:
    request = pb.WatchRequest()
    request.create_request.key = plan.key(number)
    if plan.prefix:
        request.create_request.range_end = plan.key(number)[:-1] + b"0"
    return request.SerializeToString()


class Writer:
    """The connection for puts."""

    def __init__(self, plan: Watching) -> None:
        self.connection = Connection(plan.endpoint, PUT)
        self._plan = plan
        self.sent = 0
        self.answered = 0

    def put(self) -> None:
        """Send the next put."""
        key = self._plan.key(self.sent) + (b"k" if self._plan.prefix else b"")
        value = (MARK + b"%d:%d:" % (self.sent, time.perf_counter_ns())).ljust(VALUE_BYTES, b".")
        self.connection.request([pb.PutRequest(key=key, value=value).SerializeToString()], last=True)
        self.sent += 1

    def take(self) -> int:
        """Receive answers; no event is among them."""
        self.answered += sum(
            one.kind in (DATA, HEADERS) and one.flags & END_STREAM for one in self.connection.receive()
        )
        return 0


def drive(plan: Watching, writer: Writer, selector: selectors.BaseSelector) -> float:
    """Put and receive until all has come; returns puts per second as they were begun.

    Raises:
        Wrong: nothing more comes, but something is missing.
    """
    expected, counted = plan.puts * plan.fan_out, 0
    begin = heard = time.perf_counter()
    ended = begin
    while counted < expected or writer.answered < plan.puts or time.perf_counter() - heard < QUIET_SECONDS:
        now = time.perf_counter()
        allowed = (now - begin) * plan.rate + 1 if plan.rate else counted / plan.fan_out + plan.window
        while writer.sent < min(int(allowed), plan.puts):
            writer.put()
            ended = time.perf_counter()
        # Waiting is to a millisecond, which is when the next puts are due at the rates there are.
        ready = selector.select(0.001 if plan.rate and writer.sent < plan.puts else QUIET_SECONDS)
        if ready:
            heard = time.perf_counter()
        elif now - heard > OVERDUE_SECONDS:
            raise Wrong(f"{counted} of {expected} events came, {writer.answered} of {plan.puts} puts were answered")
        for key, _ in ready:
            take: Callable[[], int] = key.data
            counted += take()
    return (plan.puts - 1) / max(ended - begin, 1e-9)


def judge(plan: Watching, listeners: list[Listener]) -> tuple[int, int, "array.array[int]"]:
    """Return when the first put was sent, when the last event came, and all latencies, sorted; all in ns.

    Puts in flight together take effect in any order; their revisions tell which.

    Raises:
        Wrong: a watcher received something else than all puts to its key, each once, in order.
    """
    begin, end, latencies = 0, 0, array.array("q")
    revisions: dict[int, int] = {}
    heard = [array.array("q") for _ in range(plan.connections * plan.streams * plan.watchers)]
    for listener in listeners:
        for watcher, arrived, answer in listener.deliveries():
            if not answer.events:
                raise Wrong(f"watcher {watcher} received an answer without events: {answer!s}")
            for event in answer.events:
                number, sent = map(int, event.kv.value[len(MARK) :].split(b":")[:2])
                if revisions.setdefault(number, event.kv.mod_revision) != event.kv.mod_revision:
                    raise Wrong(f"put {number} was told with two revisions")
                heard[watcher].append(event.kv.mod_revision)
                latencies.append(arrived - sent)
                begin = sent if number == 0 else begin
                end = max(end, arrived)
    _compare(plan, revisions, heard)
    return begin, end, array.array("q", sorted(latencies))


def _compare(plan: Watching, revisions: dict[int, int], heard: list["array.array[int]"]) -> None:
    if sorted(revisions) != list(range(plan.puts)):
        raise Wrong(f"{len(revisions)} of {plan.puts} puts were heard of")
    expected = [
        array.array("q", sorted(revisions[number] for number in range(key, plan.puts, plan.keys)))
        for key in range(plan.keys)
    ]
    for watcher, received in enumerate(heard):
        if received != expected[watcher % plan.keys]:
            wanted = len(expected[watcher % plan.keys])
            raise Wrong(f"watcher {watcher} received {len(received)} events, not the {wanted} of its key in order")


def run(plan: Watching) -> Outcome:
    """Measure once. Raises Wrong, OSError (ConnectionError, TimeoutError)."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        listeners = [Listener(plan, place) for place in range(plan.connections)]
        writer = Writer(plan)
        ends: list[Listener | Writer] = [*listeners, writer]
        for end in ends:
            stack.callback(end.connection.close)
            selector.register(end.connection.socket, selectors.EVENT_READ, end.take)
        for listener in listeners:
            listener.wait_created(plan.streams * plan.watchers)
        gc.collect()
        gc.disable()
        wall, processor = time.perf_counter(), time.process_time()
        puts_per_second = drive(plan, writer, selector)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    first, last, latencies = judge(plan, listeners)
    return Outcome(
        events=len(latencies),
        seconds=(last - first) / NANO,
        p50_ms=latencies[len(latencies) // 2] / 1e6,
        p99_ms=latencies[len(latencies) * 99 // 100] / 1e6,
        puts_per_second=puts_per_second,
        busy=processor / wall,
    )


if __name__ == "__main__":
    sys.exit(play(sys.argv[1], Watching, run))

"""Requests to many keys: reads and puts mixed, and puts at a steady rate while the engine has something large to do."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import grpc

from benchmarks.generator import BUSY_MAX, generate
from benchmarks.load import CheckFailed, Load, Sample
from benchmarks.mixer import PREFIX, Mix, Outcome, key_of
from benchmarks.wire import COMPACT, DEFRAGMENT, RANGE, SNAPSHOT, TXN, Connection
from benchmarks.work import MANY, MANY_END, PUTS_PER_TXN, SMALL, store_many
from raftkv.pb import rpc_pb2 as pb

MIXED = "mixed"
READS = 0.9
BESIDE = "beside"
"""The names by which they are chosen."""
PILOT_PER_SLOT = 20
STEADY_RATE = 1000.0
STEADY_CONNECTIONS = 10
LARGE_SECONDS_MAX = 60.0


def store_mixed(connection: Connection, first: int, last: int, value_bytes: int = len(SMALL)) -> None:
    """Store the keys with these numbers, and check that all up to the last are there."""
    for begin in range(first, last, PUTS_PER_TXN):
        request = pb.TxnRequest()
        for number in range(begin, min(begin + PUTS_PER_TXN, last)):
            request.success.add().request_put.CopyFrom(pb.PutRequest(key=key_of(number), value=b"v" * value_bytes))
        connection.call(TXN, request.SerializeToString())
    found = connection.range(pb.RangeRequest(key=PREFIX, range_end=PREFIX[:-1] + b"0", count_only=True)).count
    if found != last:
        raise RuntimeError(f"{last} keys were stored, {found} are there")


def _generate(endpoint: str, plan: Mix) -> Outcome:
    """Drive a member; its revision must have grown by the puts, no more and no less."""
    connection = Connection(endpoint)
    try:
        revision = connection.revision()
        outcome = Outcome(**generate("benchmarks.mixer", plan))
        made = connection.revision() - revision
    finally:
        connection.close()
    if made != outcome.puts:
        raise CheckFailed(f"{outcome.puts} puts made {made} revisions")
    return outcome


@dataclass(frozen=True, slots=True)
class MixJob:
    """Reads and puts of keys chosen at random, so many of them in flight."""

    load: Load
    keys: int

    def _plan(self, endpoint: str, requests: int) -> Mix:
        return Mix(
            endpoint=endpoint,
            connections=self.load.connections,
            streams=self.load.streams,
            keys=self.keys,
            value_bytes=len(SMALL),
            reads=READS,
            requests=requests,
        )

    def size(self, endpoint: str, seconds: float, requests: int | None) -> int:
        """Drive a member unmeasured and return how many requests a run should have."""
        least = self.load.in_flight
        rate = self.run(endpoint, requests or least * PILOT_PER_SLOT).rate
        return max(least, requests or int(rate * seconds))

    def run(self, endpoint: str, requests: int) -> Sample:
        """Measure once."""
        outcome = _generate(endpoint, self._plan(endpoint, requests))
        return Sample(
            rate=requests / outcome.seconds,
            operations=requests,
            latency_ms=(outcome.p50_ms, outcome.p99_ms),
            saturated=outcome.busy > BUSY_MAX,
        )


def _list(connection: Connection) -> None:
    connection.call(RANGE, pb.RangeRequest(key=MANY, range_end=MANY_END).SerializeToString(), LARGE_SECONDS_MAX)


def _compact(connection: Connection) -> None:
    request = pb.CompactionRequest(revision=connection.revision(), physical=True)
    try:
        connection.call(COMPACT, request.SerializeToString(), LARGE_SECONDS_MAX)
    except grpc.RpcError as error:
        # No put came since the one before.
        if "has been compacted" not in str(error):
            raise


def _snapshot(connection: Connection) -> None:
    for _ in connection.stream(SNAPSHOT, b"", LARGE_SECONDS_MAX):
        pass


def _defragment(connection: Connection) -> None:
    connection.call(DEFRAGMENT, b"", LARGE_SECONDS_MAX)


@dataclass(frozen=True, slots=True)
class Large:
    """Something large to ask for. before: what makes it large, before each run; it is given the number of keys."""

    title: str
    ask: Callable[[Connection], object]
    before: Callable[[Connection, int], object] = lambda *_: None


LARGES = (
    Large("nothing else", lambda _: time.sleep(0.1)),
    Large("a list of all keys of 1 KiB", _list),
    Large("a compaction of a history as long as the keys are many", _compact, store_many),
    Large("a snapshot", _snapshot),
    Large("a defragmentation", _defragment),
)


class Repeated:
    """Something large, done again and again by a thread of the benchmark's until the end of the block."""

    def __init__(self, endpoint: str, large: Large) -> None:
        self._endpoint = endpoint
        self._large = large
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat)
        self.times = 0
        self.failure: Exception | None = None

    def _repeat(self) -> None:
        connection = Connection(self._endpoint)
        try:
            while not self._ended.is_set():
                self._large.ask(connection)
                self.times += 1
        except Exception as error:
            self.failure = error
        finally:
            connection.close()

    def __enter__(self) -> "Repeated":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class BesideJob:
    """Puts at a steady rate while something large is done again and again.

    The figure is their p99 in ms: what a client waits that does not care what others ask for.
    """

    keys: int
    large: Large

    def size(self, endpoint: str, seconds: float, requests: int | None) -> int:
        """Warm up, and return how many puts a run should have."""
        puts = requests or max(1, int(STEADY_RATE * seconds))
        _generate(endpoint, replace(self._plan(endpoint, puts), requests=max(1, puts // 3)))
        return puts

    def run(self, endpoint: str, requests: int) -> Sample:
        """Measure once. Raises CheckFailed: the large thing failed, or was not done once."""
        connection = Connection(endpoint)
        self.large.before(connection, self.keys)
        connection.close()
        with Repeated(endpoint, self.large) as repeated:
            outcome = _generate(endpoint, self._plan(endpoint, requests))
        if repeated.failure is not None or not repeated.times:
            raise CheckFailed(f"what goes on beside was done {repeated.times} times: {repeated.failure}")
        return Sample(rate=outcome.p99_ms, operations=requests, saturated=outcome.busy > BUSY_MAX)

    def _plan(self, endpoint: str, puts: int) -> Mix:
        return Mix(
            endpoint=endpoint,
            connections=STEADY_CONNECTIONS,
            streams=1,
            keys=self.keys,
            value_bytes=len(SMALL),
            reads=0.0,
            requests=puts,
            rate=STEADY_RATE,
        )

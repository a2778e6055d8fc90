"""h2load: one run against one member, and the proof that every request of it was answered rightly.

A gRPC error travels as HTTP 200, and is cheap to send: counted as an answer it would look like speed. So a run of
writes must raise the store's revision by its number of requests, and a run of reads must receive as many bytes of
messages as that many right answers have.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.wire import FRAME_HEAD_BYTES, Connection, frame

RUN_SECONDS_MAX = 180.0
PILOT_PER_SLOT = 4
"""Requests of the first, unmeasured run, for each in flight: enough to set all of them going."""

RATE = re.compile(r"^finished in [^,]+, ([\d.]+) req/s", re.MULTILINE)
OUTCOME = re.compile(r"^requests: (\d+) total, .* (\d+) succeeded", re.MULTILINE)
CODES = re.compile(r"^status codes: (\d+) 2xx", re.MULTILINE)
DATA = re.compile(r"^traffic: .* \S+ \((\d+)\) data", re.MULTILINE)


class CheckFailed(Exception):
    """Not every request of a run was answered as it should be; the run counts for nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """How many connections h2load holds, and how many requests are in flight on each."""

    connections: int
    streams: int

    @classmethod
    def parse(cls, text: str) -> "Load":
        """Read `10x10`. Raises ValueError."""
        connections, streams = (int(part) for part in text.replace("×", "x").split("x"))
        return cls(connections, streams)

    def __str__(self) -> str:
        return f"{self.connections}×{self.streams}"

    @property
    def in_flight(self) -> int:
        """Requests under way at any moment."""
        return self.connections * self.streams


PEAK, OVERLOAD = Load(100, 10), Load(400, 10)
"""Where puts are fastest, and four times as many in flight."""
OVERLOAD_PER_SLOT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The figure of one run.

    rate: per second. operations: how many there were, of what the rate counts. latency_ms: p50 and p99, where measured.
    saturated: whether the generator was too busy or late, so that the engine may be faster than it looks.
    """

    rate: float
    operations: int
    latency_ms: tuple[float, float] | None = None
    saturated: bool = False


class Job(Protocol):
    """What is measured in a cell. Both raise `CheckFailed` when an answer was missing or wrong."""

    def size(self, endpoint: str, seconds: float, requests: int | None) -> int:
        """Drive a member unmeasured and return how many requests a run of this time, or asked for, should have."""

    def run(self, endpoint: str, requests: int) -> Sample:
        """Measure once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The request of a run: all its requests are this one, because h2load sends one body."""

    path: str
    request: bytes
    writes: bool
    """Whether each request makes one revision; else it changes nothing."""


@dataclass(frozen=True, slots=True)
class CallJob:
    """One request, again and again; body: a file to use for it. timed: how long each took is measured at any load."""

    call: Call
    load: Load
    body: Path
    timed: bool = False

    def size(self, endpoint: str, seconds: float, requests: int | None) -> int:
        """Drive a member unmeasured and return how many requests a run should have."""
        least = self.load.in_flight
        if requests is not None:
            drive(endpoint, self.call, self.load, least, self.body)
            return max(requests, least)
        rate = drive(endpoint, self.call, self.load, least * PILOT_PER_SLOT, self.body)
        # The first rate is that of a cold engine; a second run, a third as long as a measured one, tells the true one.
        rate = drive(endpoint, self.call, self.load, max(least, int(rate * seconds / 3)), self.body)
        return max(least, int(rate * seconds))

    def run(self, endpoint: str, requests: int) -> Sample:
        """Measure once; with one request after another, how long each took as well."""
        times = self.body.with_suffix(".times") if self.timed or self.load.in_flight == 1 else None
        rate = drive(endpoint, self.call, self.load, requests, self.body, times)
        latency = None if times is None else _latency_ms(times, requests)
        return Sample(rate=rate, operations=requests, latency_ms=latency)


@dataclass(frozen=True, slots=True)
class OverloadJob:
    """What is answered when four times as much is asked for as at the peak, as a part of what was answered there."""

    call: Call
    body: Path

    def size(self, endpoint: str, seconds: float, requests: int | None) -> int:
        """Drive a member unmeasured and return how many requests a run should have."""
        sized = CallJob(self.call, PEAK, self.body).size(endpoint, seconds, requests)
        # Many of each connection: to make that many connections takes its time as well.
        return max(sized, OVERLOAD.in_flight * OVERLOAD_PER_SLOT)

    def run(self, endpoint: str, requests: int) -> Sample:
        """Measure once."""
        peak = drive(endpoint, self.call, PEAK, requests, self.body)
        overloaded = drive(endpoint, self.call, OVERLOAD, requests, self.body)
        return Sample(rate=overloaded / peak, operations=2 * requests)


def drive(endpoint: str, call: Call, load: Load, requests: int, body: Path, times: Path | None = None) -> float:
    """Send a number of requests and return how many were answered per second.

    body: a file to use for the request. times: one in which h2load writes down how long each took.

    Raises:
        CheckFailed: h2load does not end well, or an answer is missing or wrong.
        grpc.RpcError: the member does not answer the questions around the run.
    """
    body.write_bytes(frame(call.request))
    connection = Connection(endpoint)
    try:
        if call.writes:
            revision = connection.revision()
            output = _h2load(endpoint, call.path, load, requests, body, times)
            made = connection.revision() - revision
            if made != requests:
                raise CheckFailed(f"{requests} writes made {made} revisions")
        else:
            expected = requests * (FRAME_HEAD_BYTES + len(connection.call(call.path, call.request)))
            output = _h2load(endpoint, call.path, load, requests, body, times)
            received = _number(DATA, output)
            if received != expected:
                raise CheckFailed(f"{requests} reads received {received} bytes of messages, not {expected}")
    finally:
        connection.close()
    if _number(CODES, output) != requests or _number(OUTCOME, output, 2) != requests:
        raise CheckFailed(f"not all of {requests} requests succeeded:\n{output}")
    return float(_find(RATE, output, 1))


def _latency_ms(times: Path, requests: int) -> tuple[float, float]:
    """Read p50 and p99 from what h2load wrote: a line for each request, whose third number is its microseconds."""
    found = sorted(int(line.split()[2]) for line in times.read_text().splitlines())
    times.unlink()
    if len(found) != requests:
        raise CheckFailed(f"h2load wrote down the times of {len(found)} of {requests} requests")
    p50, p99 = (found[min(requests - 1, int(requests * share))] / 1000 for share in (0.5, 0.99))
    return p50, p99


def _h2load(endpoint: str, path: str, load: Load, requests: int, body: Path, times: Path | None) -> str:
    command = [
        *("h2load", "-c", str(load.connections), "-m", str(load.streams), "-n", str(requests), "-d", str(body)),
        *(() if times is None else (f"--log-file={times}",)),
        *("-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{endpoint}{path}"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"{requests} requests were not answered in {RUN_SECONDS_MAX:.0f} s") from error
    if done.returncode != 0:
        raise CheckFailed(f"h2load failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _find(pattern: re.Pattern[str], output: str, group: int) -> str:
    match = pattern.search(output)
    if match is None:
        raise CheckFailed(f"h2load did not say what was looked for:\n{output}")
    return match[group]


def _number(pattern: re.Pattern[str], output: str, group: int = 1) -> int:
    return int(_find(pattern, output, group))

"""The watch benchmark: its shapes, and one run of each against a member, by a generator in its own process."""

from dataclasses import dataclass

from benchmarks.generator import BUSY_MAX, generate
from benchmarks.load import Load, Sample
from benchmarks.watchers import Outcome, Watching

WATCH = "watch"
"""The name by which all shapes are chosen."""

PUNCTUAL_MIN = 0.95
"""The part of the puts of a second that it must have begun in time."""
PILOT_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Who watches what, and how puts come. load: connections, and streams on each; the rest as in `Watching`."""

    title: str
    load: Load
    watchers: int
    keys: int
    prefix: bool = False
    rate: float = 0.0
    window: int = 0

    @property
    def fan_out(self) -> int:
        """Events of one put."""
        return self.load.in_flight * self.watchers // self.keys

    def plan(self, endpoint: str, puts: int) -> Watching:
        """Return one run of it."""
        return Watching(
            endpoint=endpoint,
            connections=self.load.connections,
            streams=self.load.streams,
            watchers=self.watchers,
            keys=self.keys,
            prefix=self.prefix,
            puts=puts,
            rate=self.rate,
            window=self.window,
        )


SHAPES = (
    Shape(title="Watch: 1 key × 1,000 watchers", load=Load(10, 100), watchers=1, keys=1, window=10),
    Shape(
        title="Watch: 1,000 prefixes × 1 watcher", load=Load(10, 100), watchers=1, keys=1000, prefix=True, window=100
    ),
    Shape(
        title="Watch: 1,000 prefixes × 1 watcher, 1,000 puts/s",
        load=Load(10, 100),
        watchers=1,
        keys=1000,
        prefix=True,
        rate=1000.0,
    ),
    Shape(
        title="Watch: 100 streams × 100 watchers, 1,000 puts/s × 100 events",
        load=Load(10, 10),
        watchers=100,
        keys=100,
        rate=1000.0,
    ),
)

CROWDS = tuple(
    Shape(title=f"Watch: 1 key × {watchers:,} watchers", load=load, watchers=each, keys=1, window=10)
    for watchers, load, each in (
        (1, Load(1, 1), 1),
        (10, Load(1, 10), 1),
        (100, Load(10, 10), 1),
        (1000, Load(10, 100), 1),
        (10_000, Load(10, 100), 10),
    )
)
"""From one watcher to ten thousand."""


@dataclass(frozen=True, slots=True)
class WatchJob:
    """A shape as something to measure. Its rate counts events, its requests are puts."""

    shape: Shape

    def size(self, endpoint: str, seconds: float, requests: int | None) -> int:
        """Drive a member unmeasured and return how many puts a run should have."""
        if self.shape.rate:
            return requests or max(1, int(self.shape.rate * seconds))
        sample = self.run(endpoint, self.shape.window * PILOT_ROUNDS)
        return max(self.shape.window, requests or int(sample.rate / self.shape.fan_out * seconds))

    def run(self, endpoint: str, requests: int) -> Sample:
        """Measure once. Raises CheckFailed: an event was missing, too many or late beyond bearing."""
        outcome = Outcome(**generate("benchmarks.watchers", self.shape.plan(endpoint, requests)))
        return Sample(
            rate=outcome.events / outcome.seconds,
            operations=outcome.events,
            latency_ms=(outcome.p50_ms, outcome.p99_ms),
            saturated=outcome.busy > BUSY_MAX or outcome.puts_per_second < self.shape.rate * PUNCTUAL_MIN,
        )

"""The watch benchmark: its shapes, and one run of each against a member, by a generator in its own process."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from benchmarks.engines import ROOT
from benchmarks.load import CheckFailed, Load, Sample
from benchmarks.watchers import Outcome, Watching

WATCH = "watch"
"""The name by which all shapes are chosen."""

RUN_SECONDS_MAX = 120.0
BUSY_MAX = 0.8
"""A generator that uses more of a processor is the bottleneck itself."""
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


@dataclass(frozen=True, slots=True)
class WatchJob:
    """A shape as something to measure. Its rate counts events, its requests are puts."""

    shape: Shape

    def size(self, endpoint: str, seconds: float, requests: int | None) -> int:
        """Drive a member unmeasured and return how many puts a run should have."""
        if self.shape.rate:
            return requests or max(1, int(self.shape.rate * seconds))
        sample = self.run(endpoint, self.shape.window * PILOT_ROUNDS)
        fan_out = self.shape.plan(endpoint, 1).fan_out
        return max(self.shape.window, requests or int(sample.rate / fan_out * seconds))

    def run(self, endpoint: str, requests: int) -> Sample:
        """Measure once. Raises CheckFailed: an event was missing, too many or late beyond bearing."""
        outcome = self._generate(self.shape.plan(endpoint, requests))
        return Sample(
            rate=outcome.events / outcome.seconds,
            operations=outcome.events,
            latency_ms=(outcome.p50_ms, outcome.p99_ms),
            saturated=outcome.busy > BUSY_MAX or outcome.puts_per_second < self.shape.rate * PUNCTUAL_MIN,
        )

    def _generate(self, plan: Watching) -> Outcome:
        command = [sys.executable, "-m", "benchmarks.watchers", json.dumps(asdict(plan))]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CheckFailed(f"{plan.puts} puts were not told in {RUN_SECONDS_MAX:.0f} s") from error
        if done.returncode != 0:
            raise CheckFailed(done.stderr.strip() or f"the generator failed with {done.returncode}")
        return Outcome(**json.loads(done.stdout))

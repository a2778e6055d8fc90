"""Runs one target on many inputs, and finds crashes, hangs and memory that grows."""

import gc
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

from tests.fuzz.mutation import mutated
from tests.fuzz.target import Target, digest

HANG_SECONDS = 20.0
"""Wall clock, so generous: a busy machine is no hang."""
WARM_UP = 0.2
WARM_UP_INPUTS = 2000
"""That part of the inputs, or so many, after which memory should not grow any more."""
GROWTH_BYTES = 48 << 20
POOL_SIZE = 200
LOOK_EVERY = 200


class Hang(BaseException):
    """An input took too long. Not an `Exception`: no target may swallow it."""


@dataclass
class Outcome:
    """What came of a search: `failures` are inputs with what they raised."""

    inputs: int = 0
    seconds: float = 0.0
    grown_bytes: int = 0
    failures: list[tuple[bytes, str]] = field(default_factory=list)

    @property
    def leaks(self) -> bool:
        """Whether memory grew more than noise does."""
        return self.grown_bytes > GROWTH_BYTES

    def __str__(self) -> str:
        rate = self.inputs / max(self.seconds, 1e-9)
        grown = f"memory {self.grown_bytes / (1 << 20):+.1f} MiB after the warm-up{': IT GROWS' * self.leaks}"
        return f"{self.inputs:,} inputs in {self.seconds:,.0f} s, {rate:,.0f}/s, {len(self.failures)} failures, {grown}"


def memory_bytes() -> int:
    """What this process has in memory."""
    gc.collect()
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def failure(target: Target, data: bytes) -> str | None:
    """Try one input; the traceback of what should not have happened. A hang has to happen twice: a machine may stand
    still, and then the alarm rings when the input has been taken, too."""
    found: str | None = None
    for _ in range(2):
        try:
            found = _try(target, data)
        except Hang:
            continue
        if found is None or Hang.__name__ not in found:
            return found
    return found


def _try(target: Target, data: bytes) -> str | None:
    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang(f"{HANG_SECONDS:.0f} s and no end")

    before = signal.signal(signal.SIGALRM, hang)
    # Again and again: an event loop keeps for itself what is raised in one of its callbacks.
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS, HANG_SECONDS)
    try:
        target.check(data)
    except (Exception, Hang):
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return None


def search(
    target: Target, inputs: int, seed: int, *, until: float = float("inf"), tell: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Try that many inputs, or as many as there is time for until `until` (monotonic seconds).

    Each input is a changed one of the corpus, or of those before it. One failure of a kind is kept.
    """
    rng = random.Random(f"{seed}/{target.name}")
    first = [*target.seeds, *target.kept()]
    pool, kinds = list(first), set[str]()
    outcome, began, settled = Outcome(), time.monotonic(), 0
    next_word = began + 10.0
    for number in range(inputs):
        data = mutated(pool, rng, target.max_bytes)
        found = failure(target, data)
        outcome.inputs += 1
        if found is not None and (kind := "".join(found.splitlines()[-4:-1])) not in kinds:
            kinds.add(kind)
            outcome.failures.append((data, found))
            tell(f"{target.name} {digest(data)}\n{data!r}\n{found}")
        if found is None and not rng.randrange(50):
            # A walk away from what is sound; the seeds stay.
            if len(pool) < POOL_SIZE:
                pool.append(data)
            elif len(first) < POOL_SIZE:
                pool[rng.randrange(len(first), POOL_SIZE)] = data
        if number % LOOK_EVERY:
            continue
        now = time.monotonic()
        if not settled and number >= min(inputs * WARM_UP, WARM_UP_INPUTS):
            settled = memory_bytes()
        if now >= next_word:
            next_word = now + 10.0
            outcome.seconds = now - began
            tell(f"{target.name}: {outcome}")
        if now >= until:
            break
    outcome.seconds = time.monotonic() - began
    outcome.grown_bytes = memory_bytes() - settled if settled else 0
    return outcome

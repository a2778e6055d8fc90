"""Keeping the processors awake while we measure.

A processor with nothing to do sleeps, and a virtual one that sleeps takes its host some 50 µs to wake, or hardly
anything, as the host likes at that moment. Requests that come one at a time wake a process at every step, so that their
rates then tell of the host: in turn, with nobody else at work, those of one engine varied threefold. Hence a process on
each processor that does nothing without end and gives way to any other (`SCHED_IDLE`).
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.engines import process_cpu_seconds

_SPIN = """
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""

_keepers: list[subprocess.Popen[bytes]] = []


@contextlib.contextmanager
def processors() -> Iterator[list[int]]:
    """Keep every processor this process may use awake, or none where the system has no `SCHED_IDLE`.

    Yields the ids of the processes that do it; they are gone afterwards.
    """
    with contextlib.ExitStack() as stack:
        for processor in os.sched_getaffinity(0) if hasattr(os, "SCHED_IDLE") else ():
            keeper = subprocess.Popen([sys.executable, "-c", _SPIN, str(processor)], stdout=subprocess.PIPE)
            stack.callback(_end, keeper)
            _keepers.append(keeper)
            assert keeper.stdout is not None
            keeper.stdout.readline()
        yield [keeper.pid for keeper in _keepers]


def _end(keeper: subprocess.Popen[bytes]) -> None:
    _keepers.remove(keeper)
    keeper.kill()
    keeper.communicate()


def cpu_seconds() -> float:
    """Return the processor time that this has taken so far."""
    return sum(process_cpu_seconds(keeper.pid) for keeper in _keepers)

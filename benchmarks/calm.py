"""Patience on a machine that others use too: a run waits until they are quiet, and is repeated if they disturbed it.

Runs are thrown away for what others did while they lasted, never for their own figures.
"""

import time
from collections.abc import Callable

from benchmarks.machine import Processors

OTHERS_SHARE_MAX = 0.1
"""The part of the processors that others may use in a run that counts."""

WINDOW_SECONDS = 0.5


class Patience:
    """How long one run may still be put off. servers_seconds: the processor time of all servers so far."""

    def __init__(self, seconds: float, servers_seconds: Callable[[], float]) -> None:
        self._deadline = time.monotonic() + seconds
        self._servers_seconds = servers_seconds
        self._begin()

    def _begin(self) -> None:
        self._processors, self._used = Processors(), self._servers_seconds()

    def _others(self) -> float:
        return self._processors.share_of_others(self._servers_seconds() - self._used)

    def _is_over(self) -> bool:
        return time.monotonic() >= self._deadline

    def wait(self) -> None:
        """Return when others are quiet, or patience is over; from now on the run is watched."""
        while not self._is_over():
            self._begin()
            time.sleep(WINDOW_SECONDS)
            if self._others() <= OTHERS_SHARE_MAX:
                break
        self._begin()

    def judge(self) -> tuple[float, bool]:
        """Return the others' share since `wait` (0 to 1), and whether the run counts."""
        share = self._others()
        return share, share <= OTHERS_SHARE_MAX or self._is_over()

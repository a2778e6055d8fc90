"""What lies between processes: messages that may be lost, doubled, late and in any order, and streams that may not.

An endpoint is a number: members count from 0, clients are negative. A link has a direction. What is cut in one
direction only, or between two of three, is a set of links like any other.

A message that is lost because its link is cut or its target is dead may be noticed by its sender, as by a broken
connection; one that is lost on an open link never is.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raftkv.simulation.scheduler import SECOND, Scheduler

RETRY_NS = 20_000_000, 160_000_000
"""How soon a stream tries a cut link again: twice as long each time, from the first of these to the second."""


@dataclass(slots=True)
class Weather:
    """How links behave that are not cut; probabilities of one message, times in seconds."""

    latency: float = 0.0005
    jitter: float = 0.0005
    loss: float = 0.0
    duplicate: float = 0.0
    straggle: float = 0.0
    """A message is late by up to `straggle_seconds`, and overtaken if the network is not `ordered`."""
    straggle_seconds: float = 1.0
    ordered: bool = True


class Network:
    """All links of a cluster."""

    def __init__(self, scheduler: Scheduler, rng: random.Random, weather: Weather) -> None:
        self._scheduler = scheduler
        self._random = rng.random
        self.weather = weather
        self._cuts: dict[tuple[int, int], int] = {}
        self._last: dict[tuple[int, int], int] = {}
        self._held: dict[tuple[int, int], int] = {}
        self.sent = self.lost = 0

    # Links

    def cut(self, links: list[tuple[int, int]]) -> None:
        """Let nothing pass these links, until each is mended as often as it was cut."""
        for link in links:
            self._cuts[link] = self._cuts.get(link, 0) + 1

    def mend(self, links: list[tuple[int, int]]) -> None:
        """Undo one `cut` of these links."""
        for link in links:
            left = self._cuts.get(link, 0) - 1
            if left > 0:
                self._cuts[link] = left
            else:
                self._cuts.pop(link, None)

    def mend_all(self) -> None:
        """Undo every cut, and hold nothing more."""
        self._cuts.clear()
        self._held.clear()

    def hold(self, links: list[tuple[int, int]], until: int) -> None:
        """Let messages that are sent over these links from now on arrive at this time (ns), cut or not."""
        self._held.update(dict.fromkeys(links, until))

    def release(self, links: list[tuple[int, int]]) -> None:
        """Hold nothing more that is sent over these links."""
        for link in links:
            self._held.pop(link, None)

    def is_cut(self, source: int, target: int) -> bool:
        """Whether nothing passes from one to the other."""
        return (source, target) in self._cuts

    def latency(self) -> int:
        """Draw how long something is under way (ns)."""
        weather = self.weather
        seconds = weather.latency + weather.jitter * self._random()
        if weather.straggle and self._random() < weather.straggle:
            seconds += weather.straggle_seconds * self._random()
        return int(seconds * SECOND)

    # Messages

    def post(
        self,
        source: int,
        target: int,
        deliver: Callable[..., None],
        lost: Callable[..., None],
        *args: Any,
        once: bool = False,
    ) -> None:
        """Send a message: `deliver` is called once, twice or never; `lost` when its loss could be noticed.

        One that is to arrive `once` is not doubled.
        """
        self.sent += 1
        weather = self.weather
        if weather.loss and self._random() < weather.loss:
            self.lost += 1
            return
        copies = 1
        if weather.duplicate and not once and self._random() < weather.duplicate:
            copies = 2
        if self._held and (source, target) in self._held:
            self._scheduler.at(self._held[source, target], deliver, *args)
            return
        for _ in range(copies):
            when = self._scheduler.now + self.latency()
            if weather.ordered:
                link = source, target
                when = max(when, self._last.get(link, 0) + 1)
                self._last[link] = when
            self._scheduler.at(when, self._arrive, source, target, deliver, lost, args)

    def _arrive(
        self,
        source: int,
        target: int,
        deliver: Callable[..., None],
        lost: Callable[..., None],
        args: tuple[Any, ...],
    ) -> None:
        if (source, target) in self._cuts:
            self.lost += 1
            lost(*args)
        else:
            deliver(*args)


class Channel:
    """One direction of a stream: in order, nothing lost; what meets a cut link waits until it is mended.

    What is sent at one moment arrives at one moment.
    """

    def __init__(self, network: Network, scheduler: Scheduler, source: int, target: int) -> None:
        self._network = network
        self._scheduler = scheduler
        self._source = source
        self._target = target
        self._sent_at = -1
        self._last = 0
        self._queue: deque[tuple[int, Callable[..., None], tuple[Any, ...]]] = deque()
        self._retry_ns = RETRY_NS[0]
        self._closed = False

    def put(self, callback: Callable[..., None], *args: Any) -> None:
        """Have `callback` called at the other end."""
        if self._closed:
            return
        now = self._scheduler.now
        if now != self._sent_at or not self._queue:
            self._sent_at = now
            self._last = max(self._last + 1, now + self._network.latency())
        self._queue.append((self._last, callback, args))
        if len(self._queue) == 1:
            self._scheduler.at(self._last, self._deliver)

    def close(self) -> None:
        """Drop what is under way, and what will be put."""
        self._closed = True
        self._queue.clear()

    def _deliver(self) -> None:
        if self._closed:
            return
        now = self._scheduler.now
        if self._network.is_cut(self._source, self._target):
            self._scheduler.at(now + self._retry_ns, self._deliver)
            self._retry_ns = min(2 * self._retry_ns, RETRY_NS[1])
            return
        self._retry_ns = RETRY_NS[0]
        queue = self._queue
        while queue and queue[0][0] <= now:
            _, callback, args = queue[0]
            callback(*args)
            if not queue:
                # It was closed.
                return
            queue.popleft()
        if queue:
            self._scheduler.at(queue[0][0], self._deliver)

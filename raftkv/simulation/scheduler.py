"""Virtual time: one heap of events for a whole cluster, and an asyncio event loop per process on top of it.

Each process has a loop of its own, because that is what dies with it, stands still with it and keeps its time. A loop
runs what is due in turns, as asyncio's does; between two turns some time passes, in which anything may happen to the
process. Time passes only here: an event that is in an hour comes next if nothing comes before it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush
from typing import Any, cast

SECOND = 1_000_000_000
"""Times of the scheduler are whole nanoseconds; those of a loop are seconds of its own clock."""
NOBODY = -1
SHORT_NS = 20_000
TURNS = 4
"""How many short turns of a loop follow each other without anything in between."""


class Event:
    """Something to be done, unless it is cancelled before; stands in for asyncio's handles."""

    __slots__ = ("args", "callback", "loop")

    def __init__(self, loop: "ProcessLoop | None", callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.loop = loop
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        """Let it not happen."""
        self.callback = None


class Scheduler:
    """The events of a run, in order of time and, at one moment, in the order in which they were planned.

    `digest` stands for the stream of events so far: equal runs have equal digests, under any PYTHONHASHSEED.
    """

    def __init__(self) -> None:
        self.now = 0
        self.events = 0
        self.digest = 0
        self.stopped = False
        self.bound: ProcessLoop | None = None
        """Whose loop asyncio takes for the running one."""
        self._planned = 0
        self._heap: list[tuple[int, int, Event]] = []

    @property
    def seconds(self) -> float:
        """How much time has passed."""
        return self.now / SECOND

    def at(self, when: int, callback: Callable[..., object], *args: Any) -> Event:
        """Plan an event at a time (ns)."""
        return self.plan(when, Event(None, callback, args))

    def after(self, seconds: float, callback: Callable[..., object], *args: Any) -> Event:
        """Plan an event in some time."""
        return self.plan(self.now + int(seconds * SECOND), Event(None, callback, args))

    def plan(self, when: int, event: Event) -> Event:
        """Plan an event that exists already."""
        self._planned += 1
        heappush(self._heap, (when if when > self.now else self.now, self._planned, event))
        return event

    def note(self, *numbers: int) -> None:
        """Let the digest stand for these numbers, too."""
        self.digest = hash((self.digest, *numbers))

    def run(self, until: int) -> None:
        """Let time pass up to a moment (ns), or until `stopped` is set."""
        heap = self._heap
        try:
            self._run(heap, until)
        finally:
            self.bind(None)
        if not self.stopped:
            self.now = max(self.now, until)

    def bind(self, loop: "ProcessLoop | None") -> None:
        """Let asyncio take a loop for the running one."""
        # For makers of event loops, says its documentation.
        asyncio._set_running_loop(None if loop is None else loop.as_asyncio)
        self.bound = loop

    def _run(self, heap: list[tuple[int, int, Event]], until: int) -> None:
        while heap and heap[0][0] <= until and not self.stopped:
            self.now, _, event = heappop(heap)
            callback = event.callback
            if callback is None:
                continue
            self.events += 1
            loop = event.loop
            self.digest = hash((self.digest, self.now, NOBODY if loop is None else loop.number))
            if loop is None:
                callback(*event.args)
            else:
                loop.take(event)


class ProcessLoop:
    """The event loop of one life of one process: as much of asyncio's as a member asks for.

    Invariants:
    1. A dead loop runs nothing any more; what is still planned for it is dropped.
    2. A paused one runs nothing until it is resumed, and then all that was due meanwhile.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        number: int,
        *,
        rate: float = 1.0,
        offset: float = 0.0,
        turn_ns: int = 20_000,
        on_error: Callable[[str, BaseException | None], None],
        after_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """`rate` and `offset` (seconds) are of its clock; a turn takes `turn_ns`."""
        self.scheduler = scheduler
        self.number = number
        self.as_asyncio = cast(asyncio.AbstractEventLoop, self)
        self.rate = rate
        self.offset = offset
        self.turn_ns = turn_ns
        self.dead = False
        self.paused = False
        self._on_error = on_error
        self._after_turn = after_turn
        self._ready: deque[Event] = deque()
        self._backlog: list[Event] = []
        self._busy_until = 0
        self._turn_due = False
        self._turning = False

    # The process's life

    def take(self, event: Event) -> None:
        """Run an event that is due: now, or when the turn under way has ended."""
        if self.dead:
            return
        if self.paused:
            self._backlog.append(event)
            return
        self._ready.append(event)
        if not self._turn_due:
            if self._busy_until <= self.scheduler.now:
                self._turn()
            else:
                self._plan_turn()

    def _seek_turn(self) -> None:
        if self._turn_due or not self._ready:
            return
        if self._busy_until <= self.scheduler.now:
            self._turn()
        else:
            self._plan_turn()

    def _plan_turn(self) -> None:
        self._turn_due = True
        scheduler = self.scheduler
        when = self._busy_until if self._busy_until > scheduler.now else scheduler.now
        scheduler.plan(when, Event(None, self._next_turn, ()))

    def _next_turn(self) -> None:
        self._turn_due = False
        if not self.paused and not self.dead:
            self._turn()

    def _turn(self) -> None:
        """Run what is ready, and what that makes ready while turns are short: a few of them are one event."""
        ready = self._ready
        turns = TURNS if self.turn_ns <= SHORT_NS else 1
        if self.scheduler.bound is not self:
            self.scheduler.bind(self)
        self._turning = True
        while ready and turns:
            turns -= 1
            for _ in range(len(ready)):
                event = ready.popleft()
                callback = event.callback
                if callback is not None:
                    try:
                        callback(*event.args)
                    except Exception as error:
                        self._on_error("a callback failed", error)
                if self.dead:
                    return
        self._turning = False
        self._busy_until = self.scheduler.now + self.turn_ns
        if ready:
            self._plan_turn()
        self._after_turn()

    def run_in(self, callback: Callable[..., object], *args: Any) -> None:
        """Have something done in the next turn, from outside the loop."""
        self.take(Event(self, callback, args))

    def kill(self) -> None:
        """End for good, at once, without a word to what runs here."""
        self.dead = True
        self._ready.clear()
        self._backlog.clear()

    def pause(self) -> None:
        """Stand still, as after SIGSTOP; the clock goes on."""
        self.paused = True

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        backlog, self._backlog = self._backlog, []
        self._ready.extend(backlog)
        if not self.dead:
            self._seek_turn()

    # What asyncio asks of a loop

    def time(self) -> float:
        return self.offset + self.scheduler.now * self.rate / SECOND

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        event = Event(self, callback, args)
        if not self.dead:
            self._ready.append(event)
            if not self._turn_due and not self._turning:
                self._plan_turn()
        return event

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        event = Event(self, callback, args)
        if not self.dead:
            self.scheduler.plan(self.scheduler.now + int(delay * SECOND / self.rate) + 1, event)
        return event

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        return self.call_later(when - self.time(), callback, *args)

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self.as_asyncio)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: object = None, context: Context | None = None, **_: Any
    ) -> "asyncio.Task[Any]":
        return asyncio.Task(coro, loop=self.as_asyncio)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        """Run a function half a millisecond later, whatever thread was meant."""
        future = self.create_future()

        def finish() -> None:
            if future.done():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        self.call_later(0.0005, finish)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead:
            self._on_error(str(context.get("message")), context.get("exception"))

"""Blocking work that a member has done elsewhere, and what it does when that is done."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from raftkv.server.worker import Blocking, Work

T = TypeVar("T")


class Errands:
    """What is under way."""

    __slots__ = ("_fail", "_idle", "_loop", "_under_way")

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fail = fail
        self._under_way = 0
        self._idle: asyncio.Future[None] | None = None

    def run(self, run: Blocking, work: Work, then: Callable[[], None]) -> None:
        """Have work done elsewhere and go on with `then`; whatever fails there or here stops the member."""

        def done(error: BaseException | None) -> None:
            self._under_way -= 1
            try:
                if error is not None:
                    raise error
                then()
            except Exception as failure:
                self._fail(failure)
            if not self._under_way and self._idle is not None:
                self._idle.set_result(None)
                self._idle = None

        self._under_way += 1
        run(work, done)

    def outcome(self, run: Blocking, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have work done elsewhere; an error is the caller's."""
        future: asyncio.Future[T] = self._loop.create_future()

        def attempt() -> None:
            try:
                outcome = partial(future.set_result, work())
            except Exception as error:
                outcome = partial(future.set_exception, error)
            outcomes.append(outcome)

        def done() -> None:
            if not future.done():
                outcomes[0]()

        outcomes: list[Callable[[], None]] = []
        self.run(run, attempt, done)
        return future

    async def until_idle(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)

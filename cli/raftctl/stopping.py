"""Commands that hold something until they are told to stop, and then give it back."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from cli.raftctl.failure import Failure

T = TypeVar("T")


class Stop:
    """SIGINT, SIGTERM and SIGHUP, noted from now on instead of ending the process. Made inside the event loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Any of them came."""
        self.terminated = asyncio.Event()
        """One that a terminal does not send to our children, too, came."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.asked.set)
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        # Under nohup it stays ignored.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._terminate)

    def _terminate(self) -> None:
        self.terminated.set()
        self.asked.set()

    async def unless(self, waiting: Coroutine[Any, Any, T]) -> T:
        """Wait for something; told to stop, wait until it has been undone.

        Raises:
            Failure: told to stop.
        """
        task = asyncio.ensure_future(waiting)
        await first(task, self.asked)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
        if task.cancelled():
            raise Failure("context canceled")
        return task.result()


async def first(*what: "asyncio.Event | asyncio.Future[Any]") -> None:
    """Wait until one of several things has happened."""
    events = [asyncio.ensure_future(one.wait()) for one in what if isinstance(one, asyncio.Event)]
    futures = [one for one in what if not isinstance(one, asyncio.Event)]
    try:
        await asyncio.wait((*events, *futures), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for event in events:
            event.cancel()

"""Large reads, one piece in each turn of the loop, whoever asks for it: what is small and urgent passes between."""

import asyncio
from collections import deque

LARGE_KEYS = 2_000
"""A range of more keys waits for its turn; a thousandth of a second or two of work."""


class Slices:
    """Gives turns in the order in which they are asked for, and each turn of the loop to one."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._giving = False

    async def turn(self) -> None:
        """Wait for a turn of the loop in which nobody else has a piece of work of this kind."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append(future)
        if not self._giving:
            self._giving = True
            loop.call_soon(self._give)
        await future

    def _give(self) -> None:
        waiting = self._waiting
        while waiting:
            future = waiting.popleft()
            # Who gave up has none.
            if not future.done():
                future.set_result(None)
                break
        self._giving = bool(waiting)
        if waiting:
            asyncio.get_running_loop().call_soon(self._give)

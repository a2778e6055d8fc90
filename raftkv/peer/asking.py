"""Questions to other members: one connection for each URL, made when it is needed, and kept."""

import asyncio
from urllib.parse import urlsplit

from raftkv.peer.connection import Metadata
from raftkv.peer.dial import Dial
from raftkv.peer.questions import Questions


class Asking:
    """Asks at URLs; dialled as all else is: by the same rules of TLS."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._lines: dict[str, Questions] = {}
        self._made: list[Questions] = []
        """Those too that only end what they have begun."""
        self._making: dict[str, asyncio.Lock] = {}
        self._closed = False

    async def ask(self, url: str, path: str, request: bytes, metadata: Metadata = (), *, timeout: float) -> bytes:
        """The answer to one question; `timeout` in seconds.

        Raises:
            StatusError: what was answered is an error.
            OSError: there is no answer, or one that is no use.
        """
        try:
            async with asyncio.timeout(timeout):
                line = await self._line(url)
                limit = ("grpc-timeout", f"{max(int(timeout * 1000), 1)}m")
                return await line.ask(path, request, (limit, *metadata))
        except TimeoutError:
            raise ConnectionError(f"no answer within {timeout:g} s") from None

    async def _line(self, url: str) -> Questions:
        # Those who ask meanwhile wait for the one connection.
        async with self._making.setdefault(url, asyncio.Lock()):
            line = self._lines.get(url)
            if line is None or not line.open:
                line = Questions(urlsplit(url).netloc)
                self._made = [line, *(made for made in self._made if not made.closed)]
                try:
                    await self._dial.connect(url, line)
                    if self._closed:
                        raise ConnectionError("closed here")
                except BaseException:
                    line.close()
                    raise
                self._lines[url] = line
            return line

    def close(self) -> None:
        """Close all connections; questions under way end in ConnectionError."""
        self._closed = True
        for line in self._made:
            line.close()

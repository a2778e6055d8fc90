"""The end of a connection, so that the client hears our last words."""

import asyncio

LINGER_SECONDS = 1.0
"""How long a client may keep a connection open that has nothing more to say to it."""
_LAST_WORDS_SECONDS = 10.0
"""How long it may take the last words."""


class Ending:
    """Closes a connection: what was written still leaves, and what the client is still sending is read and ignored.

    To close at once would have the system answer what was not read with a reset, which overtakes a GOAWAY or a refusal
    on its way. Both are bounded in time.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        """Begin; the protocol must ignore what it receives from here on."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._latest = self._loop.time() + _LAST_WORDS_SECONDS
        if not transport.can_write_eof():
            # TLS says goodbye by itself.
            transport.close()
        elif not transport.is_closing():
            try:
                transport.write_eof()
                transport.resume_reading()
            except OSError:
                # The client was faster.
                transport.abort()
        self._timer = self._loop.call_later(LINGER_SECONDS, self._look)

    def _look(self) -> None:
        if self._transport.get_write_buffer_size() and self._loop.time() < self._latest:
            self._timer = self._loop.call_later(LINGER_SECONDS, self._look)
        else:
            self._transport.abort()

    def over(self) -> None:
        """Note that the connection is closed."""
        self._timer.cancel()

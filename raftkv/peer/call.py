"""One outgoing gRPC call that streams requests, on a connection of its own; no answer but a status."""

from collections.abc import Callable

from raftkv.http import frames
from raftkv.peer.connection import Connection, Metadata, Stream

_NUMBER = 1


class Call(Connection):
    """A call whose requests are sent by `write`; `ended` says how it ended: gRPC status or None, and a text."""

    def __init__(
        self,
        path: str,
        authority: str,
        metadata: Metadata,
        on_writable: Callable[[], None],
        on_round_trip: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Prepare a call; `on_writable` is called whenever `congested` has turned false.

        `on_round_trip` is told how long each answered ping took, in seconds.
        """
        super().__init__(authority, on_round_trip)
        self._on_writable = on_writable
        self._path = path
        self._metadata = metadata
        self._stream = Stream(_NUMBER, frames.DEFAULT_WINDOW)
        self.ended = self._stream.ended
        self._begin(self._stream)
        self.open = False

    @property
    def congested(self) -> bool:
        """Whether what is written now would have to wait."""
        return self._paused or bool(self._stream.waiting)

    def write(self, message: bytes) -> None:
        """Send one request message; what may not leave yet is kept."""
        if not self.ended.done():
            self._stream.put(message)
            self._say(self._stream)

    def _greeting(self) -> bytes:
        # The connection and the call, in one write.
        return super()._greeting() + self._opening(_NUMBER, self._path, self._metadata)

    def _go_on(self) -> None:
        self._say(self._stream)
        if not self.congested:
            self._on_writable()

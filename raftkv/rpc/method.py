"""Methods as handlers of raw message bytes, and what a handler knows of its call."""

import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from raftkv.rpc.calls import Calls
from raftkv.rpc.framing import Answer, Framed
from raftkv.rpc.interrupt import Interrupt
from raftkv.rpc.requests import Incoming, Requests
from raftkv.status import Code


class Kind(Enum):
    """Which sides stream."""

    UNARY = "unary"
    SERVER_STREAM = "server stream"
    CLIENT_STREAM = "client stream"
    BIDI = "bidi"


class Push(Protocol):
    """Sends answers of a call within the turn of the loop, from outside its handler.

    What a handler yields waits for the client to take what came before. This does not: ask for room first.
    """

    def room(self) -> int:
        """How many bytes would leave at once; 0 while earlier ones still wait."""

    def __call__(self, messages: Framed) -> None:
        """Send messages."""


class Context:
    """What a handler may ask about its call."""

    __slots__ = (
        "_headers",
        "_metadata",
        "_peer",
        "caller",
        "certificate_user",
        "deadline",
        "interrupt",
        "note",
        "push",
    )

    def __init__(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        peer: tuple[str, int] | None,
        deadline: float | None,
        certificate_user: str = "",
    ) -> None:
        self._headers = headers
        self._peer = peer
        self._metadata: Mapping[str, str | bytes] | None = None
        self.deadline = deadline
        """Loop time (seconds) at which the caller gives up; None: never."""
        self.certificate_user = certificate_user
        """Whom the caller's certificate names, if that counts; or nothing."""
        self.caller: Any = None
        """Who calls, if whoever wraps the handlers found that out."""
        self.note: Callable[[Any, Code], None] | None = None
        """Of a call whose requests stream: told each of them that matters, and what became of it; may raise."""
        self.push: Push | None = None
        """Of a call whose answers stream, where the host can: a way past the handler's iterator."""
        self.interrupt: Interrupt | None = None
        """Of a call that streams: ends it from outside with the status it is called with."""

    @property
    def peer(self) -> str:
        """Address of the caller, host:port; empty when the host does not tell."""
        return f"{self._peer[0]}:{self._peer[1]}" if self._peer else ""

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """The call's metadata by lower-case name; names that end in -bin have bytes. Of a repeated name, the last."""
        if self._metadata is None:
            self._metadata = dict(_metadata(self._headers))
        return self._metadata


def _metadata(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[str, str | bytes]]:
    for name, value in headers:
        if name.endswith(b"-bin"):
            try:
                yield name.decode("latin-1"), base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except binascii.Error:
                continue
        elif not name.startswith((b":", b"grpc-")):
            yield name.decode("latin-1"), value.decode("latin-1")


Unary = Callable[[bytes, Context], Awaitable[Answer]]
"""A response is bytes, or pieces that are joined when they are sent."""
ServerStream = Callable[[bytes, Context], AsyncIterator[bytes]]
ClientStream = Callable[[Requests, Context], Awaitable[bytes]]
Bidi = Callable[[Incoming, Context], AsyncIterator[bytes | Framed]]


@dataclass(slots=True)
class Method:
    """One RPC. A handler ends a call by raising `StatusError`; anything else it raises is a bug: INTERNAL, logged."""

    kind: Kind
    handler: Callable[..., Any]
    calls: Calls = field(default_factory=Calls, compare=False)
    max_receive_bytes: int = 0
    """How large a message of a stream may be; 0: as large as any other call's."""
    counted: bool = True
    """Whether a stream counts among those that are open, and its requests that wait among what is in flight; not, if it
    ends at once for whoever does not belong here."""

    def served_by(self, handler: Callable[..., Any]) -> "Method":
        """The same method with another handler, around its own."""
        return Method(self.kind, handler, self.calls, self.max_receive_bytes, self.counted)

    @classmethod
    def unary(cls, handler: Unary) -> "Method":
        return cls(Kind.UNARY, handler)

    @classmethod
    def server_stream(cls, handler: ServerStream) -> "Method":
        return cls(Kind.SERVER_STREAM, handler)

    @classmethod
    def client_stream(cls, handler: ClientStream, max_receive_bytes: int = 0, *, counted: bool = True) -> "Method":
        return cls(Kind.CLIENT_STREAM, handler, max_receive_bytes=max_receive_bytes, counted=counted)

    @classmethod
    def bidi(cls, handler: Bidi) -> "Method":
        return cls(Kind.BIDI, handler)

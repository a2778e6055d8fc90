"""The types of ASGI, and an extension of it."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

Headers = tuple[tuple[bytes, bytes], ...]
Take = Callable[[bytes, bool], None]
"""Takes a piece of a request's body, and whether it is the last; never raises."""

DIRECT = "raftkv.direct"
"""Where the extensions of a scope may have a `Direct`."""

CERTIFICATE_USER = "raftkv.certificate_user"
"""Where a scope has the user whom the client's certificate names; nothing: none, or it does not count."""


class Direct(Protocol):
    """What a host can do for a request without the detour through `receive` and `send`."""

    def feed(self, take: Take) -> None:
        """Have `take` called with each piece of the body in the turn of the loop that brings it.

        From then on `receive` waits for nothing but the client's departure.
        """

    def room(self) -> int:
        """How many bytes of the body of a response that has begun would leave at once."""

    def write(self, body: bytes) -> None:
        """Send a piece of the body of a response that has begun; what there is no room for is kept."""

    def answer(self, headers: Headers, body: bytes, trailers: Headers) -> bool:
        """Send a whole response of status 200, and say whether it was sent.

        If not, a window holds it or it is large, and `send` has to be used. Headers and trailers are the same small
        ones each time: they are remembered.
        """

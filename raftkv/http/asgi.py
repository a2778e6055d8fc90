"""The types of ASGI, and an extension of it."""

from asyncio import Future
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
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

WHOLE = "raftkv.whole"
"""Where the extensions of a scope without a `Direct` may have what says whether the whole body has arrived."""

COUNTED = "raftkv.counted"
"""Where a scope says that the request counts among those that stay open already, if it does."""

CERTIFICATE_USER = "raftkv.certificate_user"
"""Where a scope has the user whom the client's certificate names; nothing: none, or it does not count."""


class Direct(Protocol):
    """What a host can do for a request without the detour through `receive` and `send`."""

    request_ended: bool
    """Whether the whole body has arrived."""
    unread: int
    """Bytes of the body that are here and were not read."""

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


class Taken(Direct, Protocol):
    """A request that an application may take without a task; then it calls `run` or `over`, once, in the end."""

    @property
    def body(self) -> bytes:
        """The body, if it is here whole and nothing was read of it; else nothing."""

    def waits_for(self, future: "Future[Any]") -> None:
        """Note that the body is read, and what is to be cancelled should the client go away."""

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Send an event of the response, as an application's `send`."""

    def run(self, rest: Coroutine[Any, Any, None]) -> None:
        """Run what is left to do in a task."""

    def over(self) -> None:
        """Note that the application is done with the request."""


TakeAtOnce = Callable[[Scope, Taken], bool]
"""What an application may have as its attribute `take`: it takes a request whose body has ended, in the turn of the
loop that brought it, and says so; if it does not, it is called as ever."""

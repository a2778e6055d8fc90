"""The types of ASGI."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Take = Callable[[bytes, bool], None]
"""Takes a piece of a request's body, and whether it is the last; never raises."""
FEED = "raftkv.feed"
"""Where a scope may have a function that is given a `Take`.

It is called from then on with what arrives, in the turn of the loop that brings it, and `receive` waits for nothing
but the client's departure.
"""
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

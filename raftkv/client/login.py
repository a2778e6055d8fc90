"""The token of a client: asked for when it is first needed, and again when a server says that it is void."""

import asyncio
from collections.abc import Awaitable, Callable

from raftkv import errors
from raftkv.client.errors import ClientError

RENEWALS = 3
"""How often one call asks for another token. Users may change faster than tokens come."""

_VOID = (errors.InvalidAuthToken, errors.AuthOldRevision, errors.UserEmpty)
"""What a server says of a token that is void, or of a call without one, once callers must say who they are."""

Metadata = tuple[tuple[str, str], ...]


class Login:
    """Who a client is."""

    def __init__(self, user: str, log_in: Callable[[], Awaitable[str]]) -> None:
        """`log_in` asks a server for a token, and raises `AuthNotEnabled` where none is needed. No user: no token."""
        self._user = user
        self._log_in = log_in
        self._token: str | None = None if user else ""
        self._asking: asyncio.Lock | None = None

    async def token(self) -> str:
        """The token to be shown; empty: none.

        Raises:
            ClientError: a server did not give one.
        """
        if self._token is None:
            # Belongs to the loop that runs when it is first needed.
            self._asking = self._asking or asyncio.Lock()
            async with self._asking:
                if self._token is None:
                    try:
                        self._token = await self._log_in()
                    except errors.AuthNotEnabled:
                        self._token = ""
        return self._token

    def forget(self, token: str, error: ClientError) -> bool:
        """Whether an error says that another token than this one would do; then `token` asks for one next time."""
        if not self._user or not isinstance(error, _VOID):
            return False
        if self._token == token:
            self._token = None
        return True


def metadata(token: str) -> Metadata:
    """What goes along with a request that shows this token."""
    return (("token", token),) if token else ()

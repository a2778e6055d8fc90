"""How a member dials the others: plainly where their URL is http, with TLS where it is https."""

import asyncio
import ssl
from urllib.parse import SplitResult, urlsplit

from raftkv.http.tls import DialTls


class Dial:
    """Makes connections to other members. Files are read for each one, so that replaced ones count from the next on."""

    def __init__(self, tls: DialTls | None = None) -> None:
        """Without rules the system's authorities vouch for others."""
        self._tls = DialTls() if tls is None else tls

    async def connect(self, url: str, protocol: asyncio.Protocol) -> None:
        """Connect a protocol of ours.

        Raises:
            OSError: nobody is there, or it cannot show that it is who it should be.
        """
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        host = parts.hostname or ""
        try:
            await loop.create_connection(lambda: protocol, host, port(parts), ssl=self._context(parts))
        except UnicodeError as error:
            # A name that no resolver is asked for, because a part of it is empty or too long.
            raise ConnectionError(f"{host} is no name of a host: {error}") from error

    def _context(self, parts: SplitResult) -> ssl.SSLContext | None:
        if parts.scheme != "https":
            return None
        try:
            return self._tls.context()
        except ValueError as error:
            raise ConnectionError(str(error)) from error


def port(parts: SplitResult) -> int:
    """The port of a URL."""
    return parts.port or (443 if parts.scheme == "https" else 80)

"""How a member dials the others: plainly where their URL is http, with TLS where it is https."""

import asyncio
import ssl
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

import grpc
import grpc.aio

from raftkv.http.tls import DialTls, pinned

_Options = Sequence[tuple[str, int | str]]


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
        await loop.create_connection(lambda: protocol, parts.hostname or "", port(parts), ssl=self._context(parts))

    async def channel(self, url: str, options: _Options) -> grpc.aio.Channel:
        """A gRPC channel, which connects when it is used; close it when it does not work, and ask for another.

        Raises:
            OSError: as for `connect`.
        """
        parts = urlsplit(url)
        context = self._context(parts)
        if context is None:
            return grpc.aio.insecure_channel(parts.netloc, options=options)
        tls = self._tls
        try:
            chain, key, roots = (path.read_bytes() if path else None for path in (tls.certificate, tls.key, tls.ca))
        except OSError as error:
            raise ConnectionError(f"cannot read the TLS files: {error}") from error
        if not tls.verify:
            # The library always verifies: it is to expect what is shown now.
            roots, name = await pinned(parts.hostname or "", port(parts), context)
            options = [*options, ("grpc.ssl_target_name_override", name)]
        credentials = grpc.ssl_channel_credentials(roots, key, chain)
        return grpc.aio.secure_channel(parts.netloc, credentials, options=options)

    def _context(self, parts: SplitResult) -> ssl.SSLContext | None:
        if parts.scheme != "https":
            return None
        try:
            return self._tls.context()
        except ValueError as error:
            raise ConnectionError(str(error)) from error


class Channels:
    """One channel for each URL, made when it is needed."""

    def __init__(self, dial: Dial, options: _Options) -> None:
        self._dial = dial
        self._options = options
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def get(self, url: str) -> grpc.aio.Channel:
        """The channel to a URL.

        Raises:
            OSError: there can be none.
        """
        channel = self._channels.get(url)
        if channel is None:
            made = await self._dial.channel(url, self._options)
            # Someone else may have been faster.
            channel = self._channels.setdefault(url, made)
            if channel is not made:
                await made.close(None)
        return channel

    def failed(self, url: str) -> None:
        """Forget a secured channel that does not work: its files or the other's certificate may be others now."""
        if url.startswith("https:"):
            self._channels.pop(url, None)

    async def close(self) -> None:
        """Close all; calls under way end."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close(None) for channel in channels))


def port(parts: SplitResult) -> int:
    """The port of a URL."""
    return parts.port or (443 if parts.scheme == "https" else 80)

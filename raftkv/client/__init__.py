"""The Python client: `Client` for threads, `AsyncClient` for asyncio; `raftkv.client.errors` says what they raise."""

from raftkv.client.aio import AsyncClient
from raftkv.client.errors import ClientError, NotConnected, OutcomeUnknown, Refused, Unavailable
from raftkv.client.sync import Client, Watch
from raftkv.client.watching import AsyncWatch, WatchCompacted

__all__ = [
    "AsyncClient",
    "AsyncWatch",
    "Client",
    "ClientError",
    "NotConnected",
    "OutcomeUnknown",
    "Refused",
    "Unavailable",
    "Watch",
    "WatchCompacted",
]

"""The Python client: `Client` for threads, `AsyncClient` for asyncio; `raftkv.client.errors` says what they raise."""

from raftkv.client.aio import AsyncClient
from raftkv.client.errors import ClientError, NotConnected, OutcomeUnknown, Refused, Unavailable
from raftkv.client.leasing import AsyncLease, LeaseLost
from raftkv.client.locking import AsyncLock
from raftkv.client.sync import Client, Lease, Lock, Watch
from raftkv.client.watching import AsyncWatch, WatchCompacted

__all__ = [
    "AsyncClient",
    "AsyncLease",
    "AsyncLock",
    "AsyncWatch",
    "Client",
    "ClientError",
    "Lease",
    "LeaseLost",
    "Lock",
    "NotConnected",
    "OutcomeUnknown",
    "Refused",
    "Unavailable",
    "Watch",
    "WatchCompacted",
]

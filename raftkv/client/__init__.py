"""The Python client: `Client` for threads, `AsyncClient` for asyncio; `raftkv.client.errors` says what they raise."""

from raftkv.client.aio import AsyncClient
from raftkv.client.coordination import Election, Lock, Transaction
from raftkv.client.electing import AsyncElection
from raftkv.client.errors import ClientError, NotConnected, OutcomeUnknown, Refused, Unavailable
from raftkv.client.leasing import AsyncLease, LeaseLost
from raftkv.client.locking import AsyncLock
from raftkv.client.stm import AsyncTransaction
from raftkv.client.sync import Client, Lease, Watch
from raftkv.client.turns import TurnLost
from raftkv.client.watching import AsyncWatch, WatchCompacted

__all__ = [
    "AsyncClient",
    "AsyncElection",
    "AsyncLease",
    "AsyncLock",
    "AsyncTransaction",
    "AsyncWatch",
    "Client",
    "ClientError",
    "Election",
    "Lease",
    "LeaseLost",
    "Lock",
    "NotConnected",
    "OutcomeUnknown",
    "Refused",
    "Transaction",
    "TurnLost",
    "Unavailable",
    "Watch",
    "WatchCompacted",
]

"""The Python client: `Client` for threads, `AsyncClient` for asyncio; `raftkv.client.errors` says what they raise.

A name is imported when it is first asked for: a program that only writes a key does not pay for locks and watches.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "aio": "AsyncClient",
    "coordination": "Election Lock Transaction",
    "electing": "AsyncElection",
    "errors": "ClientError NotConnected OutcomeUnknown Refused Unavailable",
    "leasing": "AsyncLease LeaseLost",
    "locking": "AsyncLock",
    "stm": "AsyncTransaction",
    "sync": "Client Lease Watch",
    "turns": "TurnLost",
    "watching": "AsyncWatch WatchCompacted",
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names.split()}

if not TYPE_CHECKING:  # A type checker shall go on knowing which names there are.

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

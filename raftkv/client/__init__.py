"""The Python client: `Client` for threads, `AsyncClient` for asyncio; `raftkv.client.errors` says what they raise."""

from typing import TYPE_CHECKING

from raftkv.client.errors import ClientError, OutcomeUnknown, Refused, Unavailable
from raftkv.client.sync import Client

if TYPE_CHECKING:
    from raftkv.client.aio import AsyncClient

__all__ = ["AsyncClient", "Client", "ClientError", "OutcomeUnknown", "Refused", "Unavailable"]


def __getattr__(name: str) -> object:
    # asyncio and grpc.aio double the time to start; a command line does not need them.
    if name == "AsyncClient":
        from raftkv.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(name)

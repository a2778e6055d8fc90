"""Watches: who wants to hear of which keys, and what each stream is to be told next.

Nothing here knows of an event loop, a socket or gRPC's calls: the server hands in what was committed, a driver asks for
slices of catching up, and each stream's answers wait in a queue until somebody takes them.
"""

from raftkv.watch.hub import Hub
from raftkv.watch.stream import SEND_BYTES, WatchStream, span

__all__ = ["SEND_BYTES", "Hub", "WatchStream", "span"]

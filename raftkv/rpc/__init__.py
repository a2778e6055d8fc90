"""gRPC over ASGI: framing, status, deadlines, metadata, streams. Knows nothing of etcd.

`App` is a plain ASGI application that answers with trailers, so any ASGI server that can send them hosts it.
"""

from raftkv.rpc.answers import close
from raftkv.rpc.app import App
from raftkv.rpc.calls import Said
from raftkv.rpc.framing import Answer, Framed, Gathered
from raftkv.rpc.method import Context, Kind, Method
from raftkv.rpc.prompt import Later
from raftkv.rpc.requests import Incoming, Requests

__all__ = [
    "Answer",
    "App",
    "Context",
    "Framed",
    "Gathered",
    "Incoming",
    "Kind",
    "Later",
    "Method",
    "Requests",
    "Said",
    "close",
]

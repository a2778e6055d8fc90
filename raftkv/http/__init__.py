"""HTTP/2 and HTTP/1.1 in the event loop, for ASGI applications. Knows nothing of gRPC, nor of etcd.

Written by hand because every request and every message between members passes here: docs/decisions says what was
measured.
"""

from raftkv.http.connection import MAX_STREAMS, STREAM_WINDOW_BYTES
from raftkv.http.load import Load
from raftkv.http.server import HttpServer, listen
from raftkv.http.tls import Tls

__all__ = ["MAX_STREAMS", "STREAM_WINDOW_BYTES", "HttpServer", "Load", "Tls", "listen"]

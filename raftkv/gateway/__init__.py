"""The JSON gateway: the etcd API as HTTP POST of JSON, for curl and for languages without gRPC.

A request becomes a gRPC call inside the process, so that limits, errors and handlers are the same for both.
"""

from raftkv.gateway.app import Gateway
from raftkv.gateway.routes import paths_of

__all__ = ["Gateway", "paths_of"]

"""The etcd services, one thin module each: decode, check, call the server, encode.

`services(server, limits)` is the method table that the RPC layer serves.
"""

from raftkv.api.guard import Limits
from raftkv.api.services import services

__all__ = ["Limits", "services"]

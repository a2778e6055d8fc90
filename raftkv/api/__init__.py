"""The etcd services, one thin module each: decode, check, call the server, encode.

`services(server, limits)` is the method table that the RPC layer serves.
"""

from raftkv.api.services import Limits, services

__all__ = ["Limits", "services"]

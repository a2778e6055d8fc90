"""Messages between members: one ordered gRPC stream per direction."""

from raftkv.peer.transport import PeerTransport

__all__ = ["PeerTransport"]

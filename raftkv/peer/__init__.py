"""Messages between members: one ordered gRPC stream per direction; and what members know of one that is new."""

from raftkv.peer.introduction import Acquaintance
from raftkv.peer.transport import MESSAGES, PeerTransport

__all__ = ["MESSAGES", "Acquaintance", "PeerTransport"]

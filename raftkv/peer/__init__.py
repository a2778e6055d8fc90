"""Messages between members: one ordered gRPC stream per direction; calls beside them; and what members
know of one that is new."""

from raftkv.peer.introduction import Acquaintance
from raftkv.peer.reception import Reception
from raftkv.peer.snapshot import SNAPSHOT
from raftkv.peer.transport import MESSAGES, PeerTransport
from raftkv.peer.unary import PeerCalls

__all__ = ["MESSAGES", "SNAPSHOT", "Acquaintance", "PeerCalls", "PeerTransport", "Reception"]

"""The durable log: segments, a CRC chain, group commit, torn-tail repair. `docs/formats.md` describes the bytes."""

from raftkv.wal.format import CorruptLog, WalError
from raftkv.wal.log import Group, Log, Wal, WalContents

__all__ = ["CorruptLog", "Group", "Log", "Wal", "WalContents", "WalError"]

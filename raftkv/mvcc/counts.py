"""What a keyspace has done since it was opened, for metrics."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Operations, each counted wherever it came from: alone, in a transaction, or with an expired lease."""

    puts: int = 0
    put_bytes: int = 0
    deletes: int = 0
    ranges: int = 0
    txns: int = 0
    compacted: int = 0
    """Old versions that compaction removed."""

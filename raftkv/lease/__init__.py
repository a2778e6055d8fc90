"""Leases: keys that go when nobody keeps them alive.

`LeaseStore` is the replicated half, a function of the log; `Lessor` is the leader's clock beside it.
"""

from raftkv.lease.lessor import Lessor, checkpoint_interval
from raftkv.lease.store import MAX_TTL_SECONDS, Lease, LeaseStore, fill_leases

__all__ = ["MAX_TTL_SECONDS", "Lease", "LeaseStore", "Lessor", "checkpoint_interval", "fill_leases"]

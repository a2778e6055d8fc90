"""Work on files while no member runs: snapshots looked into, and data directories made of them.

`raftctl snapshot` is the door. Nothing here asks a cluster anything.
"""

from raftkv.offline.errors import OfflineError
from raftkv.offline.etcd_file import EtcdFile
from raftkv.offline.query import range_of_file
from raftkv.offline.restore import Plan, Restored, restore
from raftkv.offline.snapshot_file import Summary, check_digest, examine

__all__ = [
    "EtcdFile",
    "OfflineError",
    "Plan",
    "Restored",
    "Summary",
    "check_digest",
    "examine",
    "range_of_file",
    "restore",
]

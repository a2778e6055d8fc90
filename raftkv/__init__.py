"""raftkv: a key-value store in Python that speaks etcd v3, replicated by Raft."""

__version__ = "0.1.0"
ETCD_API_VERSION = "3.6.0"
"""The level of the etcd API spoken here; `Status.version` carries it because clients parse it."""

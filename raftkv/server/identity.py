"""Ids of members and clusters, derived from what the operator wrote so that every member computes the same.

As etcd derives them: the first eight bytes, big endian, of a SHA-1. A cluster moved from etcd with the same URLs and
token keeps its ids.
"""

import hashlib
from collections.abc import Iterable


def member_id(peer_urls: Iterable[str], cluster_token: str) -> int:
    """Derive a member's Raft id from its peer URLs, in any order, and the cluster's token."""
    return _first_eight_bytes("".join(sorted(peer_urls)).encode() + cluster_token.encode())


def cluster_id(member_ids: Iterable[int]) -> int:
    """Derive the cluster's id from the ids of its first members, in any order."""
    return _first_eight_bytes(b"".join(member.to_bytes(8, "big") for member in sorted(member_ids)))


def _first_eight_bytes(data: bytes) -> int:
    return int.from_bytes(hashlib.sha1(data, usedforsecurity=False).digest()[:8], "big")

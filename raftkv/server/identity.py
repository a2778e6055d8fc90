"""Who a member is: ids derived once from what the operator wrote, then kept in the data directory.

Every first member computes the same ids, as etcd derives them: the first eight bytes, big endian, of a SHA-1. A cluster
moved from etcd with the same URLs and token keeps its ids. The identity stands in the header of every segment of the
log, so it is as durable as the log. From then on the directory says who this member is and the --initial-... settings
count no more: members come, go and move, and nobody should have to rewrite settings for that. Only settings that are
plainly those of another member or cluster are refused, because then the directory is not the one that was meant.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raftkv.config import DEFAULT_PEER_URLS, DEFAULT_TOKEN, Config, ConfigError, check_first_start
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.server.datadir import StartError


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Fixed at the first start. `cluster_token` is part of no message; it tells clusters with equal URLs apart."""

    cluster_id: int
    member_id: int
    cluster_token: str

    @classmethod
    def decode(cls, encoded: bytes) -> "Identity":
        """Take the identity from a log."""
        found = log_pb2.Identity.FromString(encoded)
        return cls(cluster_id=found.cluster_id, member_id=found.member_id, cluster_token=found.cluster_token)

    def encode(self) -> bytes:
        """Encode it for the log."""
        message = log_pb2.Identity(
            cluster_id=self.cluster_id, member_id=self.member_id, cluster_token=self.cluster_token
        )
        return message.SerializeToString()


def first_members(config: Config) -> tuple[Identity, Sequence[rpc_pb2.Member]]:
    """Derive who this member is, and all first members, from the settings of a first start.

    Raises:
        StartError: the settings do not describe a cluster with this member in it.
    """
    try:
        check_first_start(config)
    except ConfigError as error:
        raise StartError(str(error)) from error
    token = config.initial_cluster_token
    ids = {name: member_id(urls, token) for name, urls in config.initial_cluster}
    members = [rpc_pb2.Member(ID=ids[name], peerURLs=urls) for name, urls in config.initial_cluster]
    identity = Identity(cluster_id=cluster_id(ids.values()), member_id=ids[config.name], cluster_token=token)
    return identity, members


def check_settings(config: Config, identity: Identity, members: Sequence[rpc_pb2.Member]) -> str | None:
    """Compare the settings of a later start with the directory's `members`; what is ignored, as one line, or None.

    Settings left at their defaults say nothing.

    Raises:
        StartError: the settings are those of another cluster or of another member of this one.
    """
    named = dict(config.initial_cluster)
    own = named.get(config.name, config.initial_advertise_peer_urls)
    if named == {config.name: DEFAULT_PEER_URLS} and config.initial_advertise_peer_urls == DEFAULT_PEER_URLS:
        return None
    owners = {url: member.ID for member in members for url in member.peerURLs}
    described = [url for urls in named.values() for url in urls]
    if not any(url in owners for url in described):
        raise StartError(_foreign(config, identity, f"--initial-cluster has no URL of its members ({_list(owners)})"))
    owner = next((owners[url] for url in own if url in owners), identity.member_id)
    if owner != identity.member_id:
        raise StartError(
            f"{config.data_dir} belongs to member {identity.member_id:x}, but the flags name member {owner:x}: "
            "use another --data-dir, or the --name and URLs it was created with"
        )
    if sorted(described) == sorted(owners):
        return None
    return (
        f"--initial-cluster is ignored, {config.data_dir} says who the members are: {_list(owners)}; "
        "it counts at the first start only"
    )


def check_token(config: Config, identity: Identity) -> None:
    """Compare the token of a later start with the directory's; the default says nothing.

    Raises:
        StartError: it is that of another cluster.
    """
    token = config.initial_cluster_token
    if token not in (DEFAULT_TOKEN, identity.cluster_token):
        problem = f"--initial-cluster-token is {token}, not {identity.cluster_token}"
        raise StartError(_foreign(config, identity, problem))


def _foreign(config: Config, identity: Identity, problem: str) -> str:
    return (
        f"{config.data_dir} belongs to cluster {identity.cluster_id:x}, but {problem}: use another --data-dir, "
        "or the --initial-cluster and --initial-cluster-token it was created with"
    )


def _list(owners: Mapping[str, int]) -> str:
    return ", ".join(sorted(owners))


def member_id(peer_urls: Iterable[str], cluster_token: str) -> int:
    """Derive a member's Raft id from its peer URLs, in any order, and the cluster's token."""
    return _first_eight_bytes("".join(sorted(peer_urls)).encode() + cluster_token.encode())


def cluster_id(member_ids: Iterable[int]) -> int:
    """Derive the cluster's id from the ids of its first members, in any order."""
    return _first_eight_bytes(b"".join(member.to_bytes(8, "big") for member in sorted(member_ids)))


def _first_eight_bytes(data: bytes) -> int:
    return int.from_bytes(hashlib.sha1(data, usedforsecurity=False).digest()[:8], "big")

"""A member that was added to a running cluster: who it is, by what the others say. And the start of a sole survivor."""

import logging
from collections.abc import Sequence

from raftkv.config import Config, ConfigError, check_first_start
from raftkv.pb import log_pb2, peer_pb2, rpc_pb2
from raftkv.raft import Entry, EntryKind, NodeId
from raftkv.server.datadir import StartError
from raftkv.server.identity import Identity
from raftkv.server.membership import Membership
from raftkv.wal import Wal, WalContents

logger = logging.getLogger(__name__)

ASK_SECONDS = 10.0
"""How long a member that was added looks for others that know it; etcd's bound."""


def others_urls(config: Config) -> list[str]:
    """Where the other members are asked, by --initial-cluster.

    Raises:
        StartError: the settings have no other member, or not this one.
    """
    try:
        check_first_start(config)
    except ConfigError as error:
        raise StartError(str(error)) from error
    urls = sorted(url for name, urls in config.initial_cluster if name != config.name for url in urls)
    if not urls:
        raise StartError(
            "--initial-cluster-state is existing, but --initial-cluster names no other member: name all of them, "
            "as `raftctl member add` prints them"
        )
    return urls


def fits(config: Config, known: peer_pb2.KnownMembers) -> bool:
    """Whether --initial-cluster and the members are the same, by their peer URLs."""
    return _described(config) == sorted(sorted(member.peerURLs) for member in known.members)


def _described(config: Config) -> list[list[str]]:
    return sorted(sorted(urls) for _, urls in config.initial_cluster)


def not_answered(urls: Sequence[str]) -> StartError:
    """Nobody at these URLs says who the members are."""
    return StartError(
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs "
        f"({', '.join(urls)}): start a member there, or correct --initial-cluster"
    )


def joined_identity(config: Config, known: peer_pb2.KnownMembers) -> Identity:
    """Who this member is, by what another member says of the cluster.

    Raises:
        StartError: the members are others, or this one has started before.
    """
    if not fits(config, known):
        listed = ", ".join(",".join(sorted(member.peerURLs)) for member in known.members)
        count = " member count is unequal," if len(known.members) != len(config.initial_cluster) else ""
        raise StartError(
            f"error validating peerURLs:{count} the members of cluster {known.cluster_id:x} are at {listed}: run "
            "`raftctl member add` first, and use the --initial-cluster it prints"
        )
    own = sorted(config.initial_advertise_peer_urls)
    member = next(member for member in known.members if sorted(member.peerURLs) == own)
    if member.name:
        raise StartError(
            f"member {member.ID:x} has already been bootstrapped, but there is no data in {config.data_dir}: it has "
            "forgotten its votes and must not vote again. Restore its --data-dir, or remove the member and add it as "
            "a new one"
        )
    return Identity(cluster_id=known.cluster_id, member_id=member.ID, cluster_token=known.cluster_token)


def voters(known: peer_pb2.KnownMembers, member: NodeId) -> list[rpc_pb2.Member]:
    """The members that vote, and this one."""
    return [one for one in known.members if not one.isLearner or member == one.ID]


def check_not_removed(config: Config, membership: Membership, member: NodeId) -> None:
    """Refuse to start a member that was removed.

    Raises:
        StartError: it was.
    """
    if membership.is_removed(member) and not config.force_new_cluster:
        raise StartError(
            f"member {member:x} has been removed from the cluster for good, {config.data_dir} is of no more use: add "
            "a new member with an empty --data-dir"
        )


def stay_alone(config: Config, wal: Wal, contents: WalContents, membership: Membership, member: NodeId) -> bool:
    """Make a member the only one of its cluster (--force-new-cluster), whatever the others would say. Blocks.

    Everything in its log counts as committed: what others helped to acknowledge is among it. One entry behind that
    removes all others for good. False: it is the only one already, and nothing is done.
    """
    changes = [log_pb2.ConfChange.FromString(entry[3]) for entry in contents.entries if entry[2] and entry[3]]
    # What the log says last counts: the store may lag.
    alone = member == changes[-1].sole.ID if changes else membership.conf_state.members() == (member,)
    if alone:
        logger.warning("--force-new-cluster has no effect: this member is the only one; leave it out from now on")
        return False
    term, voted_for, _ = contents.hard_state
    last = contents.entries[-1][1] if contents.entries else contents.snapshot[0]
    own = rpc_pb2.Member(ID=member, peerURLs=config.initial_advertise_peer_urls)
    data = log_pb2.ConfChange(sole=own).SerializeToString()
    entry = Entry(term, last + 1, EntryKind.CONF_CHANGE, data)
    contents.hard_state = (term, voted_for, last + 1)
    contents.entries.append((term, last + 1, EntryKind.CONF_CHANGE, data))
    wal.write([wal.encode(contents.hard_state, [entry])])
    logger.warning("--force-new-cluster: member %x goes on alone, behind entry %d", member, last)
    return True

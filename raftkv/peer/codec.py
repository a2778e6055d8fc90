"""Raft's messages as protobuf, and back. The core knows nothing of bytes, the wire nothing of the core."""

import logging
from collections.abc import Iterator

from raftkv.pb import log_pb2, peer_pb2
from raftkv.raft import (
    AppendEntries,
    AppendEntriesResponse,
    ConfState,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    Propose,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    SnapshotMetadata,
    TimeoutNow,
)

logger = logging.getLogger(__name__)

_MESSAGES_TAG = b"\x0a"
"""MessageBatch.messages: field 1, length-delimited."""


def encode_framed(message: Message) -> bytes:
    """Encode one element of a `MessageBatch`; a batch is such elements one after the other."""
    encoded = encode(message).SerializeToString()
    return b"".join((_MESSAGES_TAG, _varint(len(encoded)), encoded))


def decode_batch(batch: bytes) -> Iterator[Message]:
    """Decode the messages of a batch in order; those of a kind this version does not know are left out.

    Raises:
        google.protobuf.message.DecodeError: these bytes are no batch.
    """
    for wire in peer_pb2.MessageBatch.FromString(batch).messages:
        try:
            yield decode(wire)
        except ValueError as error:
            logger.warning("dropped a message of member %x: %s", wire.sender, error)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode(message: Message) -> peer_pb2.Message:
    """The wire form of a message."""
    wire = peer_pb2.Message(sender=message.sender, to=message.to, term=message.term)
    match message:
        case AppendEntries():
            append = wire.append_entries
            append.prev_log_index = message.prev_log_index
            append.prev_log_term = message.prev_log_term
            append.commit = message.commit
            append.silent = message.silent
            for entry in message.entries:
                append.entries.add(term=entry.term, index=entry.index, kind=entry.kind, data=entry.data)
        case AppendEntriesResponse():
            wire.append_entries_response.CopyFrom(
                peer_pb2.AppendEntriesResponse(
                    rejected=message.rejected,
                    index=message.index,
                    hint_index=message.hint_index,
                    hint_term=message.hint_term,
                )
            )
        case Heartbeat():
            wire.heartbeat.CopyFrom(peer_pb2.Heartbeat(commit=message.commit, context=message.context))
        case HeartbeatResponse():
            wire.heartbeat_response.CopyFrom(peer_pb2.HeartbeatResponse(context=message.context))
        case RequestVote():
            wire.request_vote.CopyFrom(
                peer_pb2.RequestVote(
                    last_log_index=message.last_log_index,
                    last_log_term=message.last_log_term,
                    pre_vote=message.pre_vote,
                    transfer=message.transfer,
                )
            )
        case RequestVoteResponse():
            wire.request_vote_response.CopyFrom(
                peer_pb2.RequestVoteResponse(granted=message.granted, pre_vote=message.pre_vote)
            )
        case InstallSnapshot():
            wire.install_snapshot.metadata.CopyFrom(_encode_metadata(message.metadata))
        case TimeoutNow():
            wire.timeout_now.SetInParent()
        case Propose():
            wire.propose.data.extend(message.data)
            wire.propose.SetInParent()
        case ReadIndex():
            wire.read_index.CopyFrom(peer_pb2.ReadIndex(context=message.context))
        case ReadIndexResponse():
            wire.read_index_response.CopyFrom(peer_pb2.ReadIndexResponse(context=message.context, index=message.index))
    return wire


def decode(wire: peer_pb2.Message) -> Message:
    """The message of a wire form.

    Raises:
        ValueError: a kind this version does not know.
    """
    sender, to, term = wire.sender, wire.to, wire.term
    match wire.WhichOneof("kind"):
        case "append_entries":
            append = wire.append_entries
            entries = [Entry(e.term, e.index, EntryKind(e.kind), e.data) for e in append.entries]
            return AppendEntries(
                sender, to, term, append.prev_log_index, append.prev_log_term, entries, append.commit, append.silent
            )
        case "append_entries_response":
            answer = wire.append_entries_response
            return AppendEntriesResponse(
                sender, to, term, answer.rejected, answer.index, answer.hint_index, answer.hint_term
            )
        case "heartbeat":
            return Heartbeat(sender, to, term, wire.heartbeat.commit, wire.heartbeat.context)
        case "heartbeat_response":
            return HeartbeatResponse(sender, to, term, wire.heartbeat_response.context)
        case "request_vote":
            vote = wire.request_vote
            return RequestVote(sender, to, term, vote.last_log_index, vote.last_log_term, vote.pre_vote, vote.transfer)
        case "request_vote_response":
            return RequestVoteResponse(
                sender, to, term, wire.request_vote_response.granted, wire.request_vote_response.pre_vote
            )
        case "install_snapshot":
            return InstallSnapshot(sender, to, term, _decode_metadata(wire.install_snapshot.metadata))
        case "timeout_now":
            return TimeoutNow(sender, to, term)
        case "propose":
            return Propose(sender, to, term, tuple(wire.propose.data))
        case "read_index":
            return ReadIndex(sender, to, term, wire.read_index.context)
        case "read_index_response":
            return ReadIndexResponse(sender, to, term, wire.read_index_response.context, wire.read_index_response.index)
        case kind:
            raise ValueError(f"a peer sent a message of unknown kind {kind!r}")


def _encode_metadata(metadata: SnapshotMetadata) -> log_pb2.SnapshotMetadata:
    conf = metadata.conf_state
    return log_pb2.SnapshotMetadata(
        index=metadata.index,
        term=metadata.term,
        conf_state=log_pb2.ConfState(
            voters=conf.voters,
            learners=conf.learners,
            voters_outgoing=conf.voters_outgoing,
            learners_next=conf.learners_next,
            auto_leave=conf.auto_leave,
        ),
    )


def _decode_metadata(wire: log_pb2.SnapshotMetadata) -> SnapshotMetadata:
    conf = wire.conf_state
    return SnapshotMetadata(
        index=wire.index,
        term=wire.term,
        conf_state=ConfState(
            voters=tuple(conf.voters),
            learners=tuple(conf.learners),
            voters_outgoing=tuple(conf.voters_outgoing),
            learners_next=tuple(conf.learners_next),
            auto_leave=conf.auto_leave,
        ),
    )

"""Who belongs to the cluster: ids, URLs and names, kept with the keys so that both are of one moment."""

from collections.abc import Iterable, Sequence

from raftkv.mvcc import META, Backend, Store
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.raft import ConfState

_MEMBERS = b"members"
_CONF_STATE = b"conf_state"


def encode_conf_state(conf_state: ConfState) -> bytes:
    """Encode a configuration as store and log keep it."""
    return log_pb2.ConfState(
        voters=conf_state.voters,
        learners=conf_state.learners,
        voters_outgoing=conf_state.voters_outgoing,
        learners_next=conf_state.learners_next,
        auto_leave=conf_state.auto_leave,
    ).SerializeToString()


def decode_conf_state(encoded: bytes) -> ConfState:
    """Decode a configuration of store or log."""
    stored = log_pb2.ConfState.FromString(encoded)
    return ConfState(
        voters=tuple(stored.voters),
        learners=tuple(stored.learners),
        voters_outgoing=tuple(stored.voters_outgoing),
        learners_next=tuple(stored.learners_next),
        auto_leave=stored.auto_leave,
    )


class Membership:
    """The members in force and Raft's configuration, both stored with the applied index."""

    def __init__(self, store: Store) -> None:
        """Load the members from the store; an empty store has none."""
        self._store = store
        self._members: dict[int, rpc_pb2.Member] = {}
        self.load()

    def load(self) -> None:
        """Take what the store holds now."""
        encoded = self._store.get_meta(_MEMBERS)
        if encoded is not None:
            stored = rpc_pb2.MemberListResponse.FromString(encoded)
            self._members = {member.ID: member for member in stored.members}

    def bootstrap(self, members: Iterable[rpc_pb2.Member]) -> None:
        """Take the initial members of a new cluster."""
        self._members = {member.ID: member for member in members}
        self._save()
        self._store.set_meta(_CONF_STATE, encode_conf_state(ConfState(voters=tuple(sorted(self._members)))))

    @property
    def members(self) -> Sequence[rpc_pb2.Member]:
        """All members, by id."""
        return [self._members[member_id] for member_id in sorted(self._members)]

    @property
    def conf_state(self) -> ConfState:
        """Raft's view of the configuration."""
        return self.stored_conf_state(self._store.backend)

    @staticmethod
    def stored_conf_state(backend: Backend) -> ConfState:
        """The configuration that a store holds."""
        return decode_conf_state(backend.get(META, _CONF_STATE) or b"")

    def publish(self, attributes: log_pb2.MemberAttributes) -> None:
        """Apply what a member says of itself; an unknown member's words are ignored."""
        member = self._members.get(attributes.member_id)
        if member is None:
            return
        member.name = attributes.name
        member.clientURLs[:] = attributes.client_urls
        self._save()

    def _save(self) -> None:
        encoded = rpc_pb2.MemberListResponse(members=self.members).SerializeToString()
        self._store.set_meta(_MEMBERS, encoded)

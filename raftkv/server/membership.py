"""Who belongs to the cluster: ids, URLs and names, kept with the keys so that both are of one moment.

Everything here follows from the log. A change that cannot be made is refused when it is applied, on every member alike.
"""

from collections.abc import Iterable, Sequence, Set

from raftkv import errors, raft
from raftkv.mvcc import META, Backend, Store
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.raft import ConfState, NodeId

_MEMBERS = b"members"
_CONF_STATE = b"conf_state"
_HISTORY = b"member_history"


def encode_conf_state(conf_state: ConfState) -> bytes:
    """Encode a configuration as store and log keep it."""
    return _conf_message(conf_state).SerializeToString()


def decode_conf_state(encoded: bytes) -> ConfState:
    """Decode a configuration of store or log."""
    return _conf_state(log_pb2.ConfState.FromString(encoded))


def _conf_message(conf_state: ConfState) -> log_pb2.ConfState:
    return log_pb2.ConfState(
        voters=conf_state.voters,
        learners=conf_state.learners,
        voters_outgoing=conf_state.voters_outgoing,
        learners_next=conf_state.learners_next,
        auto_leave=conf_state.auto_leave,
    )


def _conf_state(stored: log_pb2.ConfState) -> ConfState:
    return ConfState(
        voters=tuple(stored.voters),
        learners=tuple(stored.learners),
        voters_outgoing=tuple(stored.voters_outgoing),
        learners_next=tuple(stored.learners_next),
        auto_leave=stored.auto_leave,
    )


class Membership:
    """The members in force and Raft's configuration, both stored with the applied index.

    Invariants:
    1. The ids of `members` are those of the configuration; none of them was ever removed.
    2. `_points` is in order of index; its last item is the configuration in force.
    """

    def __init__(self, store: Store) -> None:
        """Load the members from the store; an empty store has none."""
        self._store = store
        self._members: dict[NodeId, rpc_pb2.Member] = {}
        self._founders: tuple[rpc_pb2.Member, ...] = ()
        self._introduced: tuple[rpc_pb2.Member, ...] = ()
        self._removed: set[NodeId] = set()
        self._points: list[tuple[int, ConfState]] = []
        self.load()

    def load(self) -> None:
        """Take what the store holds now."""
        encoded = self._store.get_meta(_MEMBERS)
        if encoded is None:
            return
        stored = rpc_pb2.MemberListResponse.FromString(encoded)
        self._members = {member.ID: member for member in stored.members}
        kept = self._store.get_meta(_HISTORY)
        if kept is None:
            # Written before members could change: those of today are the first ones.
            self._founders = _unnamed(self._members.values())
            self._removed, self._introduced = set(), ()
            self._points = [(0, self.stored_conf_state(self._store.backend))]
            return
        history = log_pb2.MemberHistory.FromString(kept)
        self._founders = tuple(history.founders)
        self._introduced = tuple(history.introduced)
        self._removed = set(history.removed)
        self._points = [(point.index, _conf_state(point.conf_state)) for point in history.points]

    def bootstrap(self, founders: Iterable[rpc_pb2.Member], introduced: Iterable[rpc_pb2.Member] = ()) -> None:
        """Begin as the members of a new cluster do: whoever joins later is told the rest by the log.

        Such a member was told who the others are today (`introduced`): the leader may be one of these.
        """
        self._founders = _unnamed(founders)
        self._introduced = _unnamed(introduced)
        self._members = {member.ID: _copy(member) for member in self._founders}
        self._removed = set()
        self._points = [(0, ConfState(voters=tuple(sorted(self._members))))]
        self._save()
        self._save_conf_state()

    @property
    def members(self) -> Sequence[rpc_pb2.Member]:
        """All members, by id."""
        return [self._members[member_id] for member_id in sorted(self._members)]

    @property
    def founders(self) -> Sequence[rpc_pb2.Member]:
        """The members before the first entry of the log."""
        return self._founders

    @property
    def peers(self) -> dict[NodeId, Sequence[str]]:
        """Where each member is reached."""
        known = [*self._introduced, *self._members.values()]
        return {member.ID: member.peerURLs for member in known if member.ID not in self._removed}

    def get(self, member: NodeId) -> rpc_pb2.Member | None:
        """The member with this id."""
        return self._members.get(member)

    @property
    def removed(self) -> Set[NodeId]:
        """The ids that were members' and are nobody's any more."""
        return self._removed

    def is_removed(self, member: NodeId) -> bool:
        """Whether this id was a member's and is nobody's any more."""
        return member in self._removed

    @property
    def conf_state(self) -> ConfState:
        """Raft's view of the configuration."""
        return self._points[-1][1] if self._points else ConfState(voters=())

    @property
    def points(self) -> Sequence[tuple[int, ConfState]]:
        """The configurations since the log begins, each with the index from which on it is in force."""
        return self._points

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

    def apply(self, change: log_pb2.ConfChange | None, index: int, *, log_begins: int = 0) -> ConfState:
        """Apply the change of the entry at `index`; None leaves a joint configuration. The configuration then in force.

        What is in force before the log begins is forgotten.

        Raises:
            EtcdError: it cannot be made; nothing has changed.
        """
        try:
            conf_state = raft.leave_joint(self.conf_state) if change is None else self._changed(change)
        except raft.ChangeRefused as error:
            raise errors.Unhealthy from error
        if conf_state != self.conf_state:
            self._points.append((index, conf_state))
            while len(self._points) > 1 and self._points[1][0] <= log_begins:
                del self._points[0]
            self._save_conf_state()
        self._save()
        return conf_state

    def _changed(self, change: log_pb2.ConfChange) -> ConfState:
        kind = change.WhichOneof("change")
        if kind == "add":
            return self._add(change.add)
        if kind == "remove":
            return self._remove(change.remove)
        if kind == "promote":
            return self._promote(change.promote)
        if kind == "update":
            return self._update(change.update)
        if kind == "sole":
            return self._stay_alone(change.sole)
        raise RuntimeError("a change of the members of a kind that this version does not know")

    def _add(self, member: rpc_pb2.Member) -> ConfState:
        if member.ID in self._members or member.ID in self._removed:
            raise errors.MemberExist
        self.check_urls(member.peerURLs)
        add = raft.add_learner if member.isLearner else raft.add_voter
        conf_state = add(self.conf_state, member.ID)
        self._members[member.ID] = _copy(member)
        return conf_state

    def check_urls(self, urls: Iterable[str], owner: NodeId = 0) -> None:
        """See that nobody but `owner` is reached at one of these peer URLs.

        Raises:
            PeerURLExist
        """
        known = {url for member in self._members.values() if owner != member.ID for url in member.peerURLs}
        if known & {*urls}:
            raise errors.PeerURLExist

    def _known(self, member: NodeId) -> rpc_pb2.Member:
        found = self._members.get(member)
        if found is None:
            raise errors.MemberNotFound
        return found

    def _remove(self, member: NodeId) -> ConfState:
        self._known(member)
        if self.conf_state.voters == (member,):
            raise errors.MemberNotEnoughStarted
        conf_state = raft.remove(self.conf_state, member)
        del self._members[member]
        self._removed.add(member)
        return conf_state

    def _promote(self, member: NodeId) -> ConfState:
        found = self._known(member)
        if not found.isLearner:
            raise errors.MemberNotLearner
        conf_state = raft.add_voter(self.conf_state, member)
        found.isLearner = False
        return conf_state

    def _update(self, member: rpc_pb2.Member) -> ConfState:
        found = self._known(member.ID)
        self.check_urls(member.peerURLs, member.ID)
        found.peerURLs[:] = member.peerURLs
        return self.conf_state

    def _stay_alone(self, member: rpc_pb2.Member) -> ConfState:
        own = self._members.get(member.ID) or _copy(member)
        own.isLearner = False
        self._removed.update(other for other in self._members if other != own.ID)
        self._removed.discard(own.ID)
        self._members = {own.ID: own}
        return ConfState(voters=(own.ID,))

    def _save(self) -> None:
        if all(member.ID in self._members or member.ID in self._removed for member in self._introduced):
            self._introduced = ()
        encoded = rpc_pb2.MemberListResponse(members=self.members).SerializeToString()
        self._store.set_meta(_MEMBERS, encoded)
        history = log_pb2.MemberHistory(
            founders=self._founders,
            introduced=self._introduced,
            removed=sorted(self._removed),
            points=[log_pb2.ConfPoint(index=index, conf_state=_conf_message(conf)) for index, conf in self._points],
        )
        self._store.set_meta(_HISTORY, history.SerializeToString())

    def _save_conf_state(self) -> None:
        self._store.set_meta(_CONF_STATE, encode_conf_state(self.conf_state))


def _copy(member: rpc_pb2.Member) -> rpc_pb2.Member:
    copied = rpc_pb2.Member()
    copied.CopyFrom(member)
    return copied


def _unnamed(members: Iterable[rpc_pb2.Member]) -> tuple[rpc_pb2.Member, ...]:
    """Members as they were before they had started."""
    return tuple(rpc_pb2.Member(ID=member.ID, peerURLs=member.peerURLs) for member in members)

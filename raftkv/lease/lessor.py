"""The leader's half of leases: the time that is left of each.

Only the primary keeps time, which is the leader from the moment it has applied an entry of its own term. By then it
knows every renewal an earlier leader has promised to a client. Times are seconds of the clock that is handed in, so a
test can let years pass; nothing of it is replicated except through checkpoints.

Never early: a new primary gives every lease what the log says is left of it, counted anew from now, and an election
timeout on top. A renewal counts from when it was asked for and is promised only once leadership has been confirmed
after that: so every later primary was elected later. What the primary decides by its clock, an expiry or a checkpoint,
is void in any other term than its own.

Not for ever: without checkpoints each election would give a lease its whole time again (etcd's weak spot). The primary
tells the log what is left when a lease has not been renewed for a while; the first renewal after that takes it back
before it is promised.

Both heaps are lazy: a renewal does not touch them. What comes up too early goes back; one look handles no more than
`LOOK_LEASES`, for a hundred thousand that were renewed may come up together. What was revoked stays until it comes up
or outnumbers the living. A new primary takes leases up a few at a time, or when one is asked for; the time of each
counts from then.
"""

import heapq
import math
from collections.abc import Callable, Iterable

from raftkv.lease.store import Lease, LeaseStore

LONGEST_CHECKPOINT_SECONDS = 60.0
SHORTEST_CHECKPOINT_SECONDS = 5.0
LOOK_LEASES = 500
"""Looked at in one go, within a few milliseconds."""
OUTDATED = 1000
"""Entries of a heap that may be outdated beside as many as there are leases."""

Due = tuple[float, int]
"""A time and the lease that is looked at then."""


def checkpoint_interval(known: int) -> float:
    """Seconds of a lease that may pass before the log is told; 0: never.

    Half of what is left: clients renew at a third, so a lease that is kept alive costs no entry.
    """
    seconds = min(known / 2, LONGEST_CHECKPOINT_SECONDS)
    return seconds if seconds >= SHORTEST_CHECKPOINT_SECONDS else 0.0


class Lessor:
    """Keeps the time of leases while it is primary.

    Invariants:
    1. While `term` is 0 nothing is known of time. Else every lease has an expiry or is among `_waiting`.
    2. A lease with an expiry has an entry in `_expiries` at or before it, or is in `_expiring`.
    3. `_marks` counts the checkpoints of a lease that were handed out and may still be applied.
    """

    def __init__(self, store: LeaseStore, *, clock: Callable[[], float], slack_seconds: float) -> None:
        """`clock` is monotonic; `slack_seconds`, the election timeout, is what a new primary adds."""
        self._store = store
        self._clock = clock
        self._slack = slack_seconds
        self.term = 0
        self._reading = 0.0
        self._time = 0.0
        self._waiting: list[int] = []
        self._expiry: dict[int, float] = {}
        self._expiries: list[Due] = []
        self._expiring: set[int] = set()
        self._checkpoints: list[Due] = []
        self._marks: dict[int, int] = {}
        self.expiries_unfinished = self.checkpoints_unfinished = False
        """Whether the last look ended before all that had come up was seen: more should follow soon."""
        store.observer = self

    # Who is primary

    def promote(self, term: int) -> None:
        """Become primary in a term whose leader we are, with all earlier entries applied; `take_up` must follow."""
        self.demote()
        self.term = term
        self._reading, self._time = self._clock(), 0.0
        self._waiting = list(self._store.leases)

    def take_up(self, limit: int) -> bool:
        """Begin to keep the time of some leases; whether others still wait."""
        taken, self._waiting = self._waiting[-limit:], self._waiting[:-limit]
        for lease_id in taken:
            lease = self._store.get(lease_id)
            if lease is not None:
                self._take_up(lease)
        return bool(self._waiting)

    def _take_up(self, lease: Lease) -> None:
        if lease.id not in self._expiry:
            self._set_expiry(lease.id, self._now() + lease.known + self._slack)
            self._schedule_checkpoint(lease)

    def demote(self) -> None:
        """Forget all times: from now on they are the business of another."""
        self.term = 0
        self._waiting, self._expiry, self._expiries, self._expiring = [], {}, [], set()
        self._checkpoints, self._marks = [], {}
        self.expiries_unfinished = self.checkpoints_unfinished = False

    def _now(self) -> float:
        """Time as leases see it: while this process stood still nobody could renew, so that does not count."""
        reading = self._clock()
        self._time += min(reading - self._reading, self._slack)
        self._reading = reading
        return self._time

    # What the log did

    def granted(self, lease: Lease) -> None:
        if self.term:
            self._set_expiry(lease.id, self._now() + lease.ttl)
            self._schedule_checkpoint(lease)

    def revoked(self, lease_id: int) -> None:
        self._expiry.pop(lease_id, None)
        self._expiring.discard(lease_id)
        self._marks.pop(lease_id, None)
        self._prune()

    def _prune(self) -> None:
        """Drop what is outdated when there is too much of it: a lease may be revoked years before its time."""
        bound = 2 * len(self._expiry) + OUTDATED
        if len(self._expiries) > bound:
            self._expiries = [(expiry, lease_id) for lease_id, expiry in self._expiry.items()]
            heapq.heapify(self._expiries)
        if len(self._checkpoints) > bound:
            self._checkpoints = []
            for lease_id in self._expiry:
                lease = self._store.get(lease_id)
                if lease is not None:
                    self._schedule_checkpoint(lease)

    def checkpointed(self, lease: Lease) -> None:
        if not self.term or not lease.remaining:
            return
        left = self._marks.get(lease.id, 0) - 1
        if left > 0:
            self._marks[lease.id] = left
        else:
            self._marks.pop(lease.id, None)
            self._schedule_checkpoint(lease)

    # Renewing

    def renew(self, lease_id: int) -> bool:
        """Give a lease its whole time from now on, unless it is being revoked; never less than it has.

        Returns whether the log may say that less is left: then a checkpoint of 0 must be applied before the renewal
        is promised to anyone.
        """
        lease = self._store.get(lease_id)
        if lease is None or lease_id in self._expiring:
            return False
        self._take_up(lease)
        self._expiry[lease_id] = max(self._expiry[lease_id], self._now() + lease.ttl)
        return bool(lease.remaining or lease_id in self._marks)

    def is_expiring(self, lease_id: int) -> bool:
        """Whether its revocation was handed out: its fate is in the log."""
        return lease_id in self._expiring

    def remaining(self, lease: Lease) -> float:
        """Seconds left, at least 0; while primary."""
        self._take_up(lease)
        return max(0.0, self._expiry[lease.id] - self._now())

    def soonest_first(self) -> Callable[[], list[int]]:
        """All leases in the order in which they will expire; in order of their ids while not primary.

        As a function to call in any thread, since there may be many: it knows the leases of this moment.
        """
        ids, expiry = list(self._store.leases), self._expiry.copy()
        return lambda: sorted(ids, key=lambda lease_id: (expiry.get(lease_id, math.inf), lease_id))

    # Expiring

    def take_expired(self, max_keys: int) -> list[int]:
        """Hand out leases whose time is up, to be revoked: a few, with `max_keys` keys or one lease."""
        if not self.term:
            return []
        now, size, taken = self._now(), 0, list[int]()
        for _ in range(LOOK_LEASES):
            if not self._expiries or self._expiries[0][0] > now:
                break
            lease_id = self._expiries[0][1]
            lease = self._store.get(lease_id)
            if lease is None:
                heapq.heappop(self._expiries)
                continue
            expiry = self._expiry[lease_id]
            if expiry > now:
                heapq.heapreplace(self._expiries, (expiry, lease_id))
                continue
            # A lease costs something too.
            size += 1 + len(lease.keys or ())
            if taken and size > max_keys:
                break
            heapq.heappop(self._expiries)
            self._expiring.add(lease_id)
            taken.append(lease_id)
        self.expiries_unfinished = self._has_come(self._expiries, now)
        return taken

    @staticmethod
    def _has_come(heap: list[Due], now: float) -> bool:
        return bool(heap) and heap[0][0] <= now

    def put_back(self, lease_ids: Iterable[int]) -> None:
        """Nobody knows what became of these revocations: hand them out again later; no renewal in between."""
        for lease_id in lease_ids:
            if lease_id in self._expiring:
                heapq.heappush(self._expiries, (self._expiry[lease_id], lease_id))

    # Checkpoints

    def take_checkpoints(self, limit: int) -> list[tuple[int, int]]:
        """Hand out what is left (seconds, rounded up) of leases that have not been renewed for a while."""
        if not self.term:
            return []
        now, taken = self._now(), list[tuple[int, int]]()
        for _ in range(LOOK_LEASES):
            if not self._checkpoints or self._checkpoints[0][0] > now or len(taken) >= limit:
                break
            lease_id = heapq.heappop(self._checkpoints)[1]
            lease = self._store.get(lease_id)
            if lease is None:
                continue
            left = math.ceil(self._expiry[lease_id] - now)
            if left <= 0:
                continue
            if self._checkpoint_due(lease) > now:
                self._schedule_checkpoint(lease)
                continue
            self._marks[lease_id] = self._marks.get(lease_id, 0) + 1
            taken.append((lease_id, left))
        self.checkpoints_unfinished = self._has_come(self._checkpoints, now)
        return taken

    def checkpoints_refused(self, lease_ids: Iterable[int]) -> None:
        """These will never be applied: measure again later."""
        for lease_id in lease_ids:
            left = self._marks.pop(lease_id, 0) - 1
            if left > 0:
                self._marks[lease_id] = left
            lease = self._store.get(lease_id)
            if lease is not None:
                self._schedule_checkpoint(lease)

    def checkpoints_failed(self, lease_ids: Iterable[int]) -> None:
        """Nobody knows whether these will be applied: measure again later."""
        for lease_id in lease_ids:
            lease = self._store.get(lease_id)
            if lease is not None and self.term:
                self._schedule_checkpoint(lease)

    def _checkpoint_due(self, lease: Lease) -> float:
        return self._expiry[lease.id] - lease.known + checkpoint_interval(lease.known)

    def _schedule_checkpoint(self, lease: Lease) -> None:
        # One that still waits is scheduled when it is taken up.
        if lease.id in self._expiry and checkpoint_interval(lease.known):
            heapq.heappush(self._checkpoints, (self._checkpoint_due(lease), lease.id))

    def _set_expiry(self, lease_id: int, expiry: float) -> None:
        self._expiry[lease_id] = expiry
        heapq.heappush(self._expiries, (expiry, lease_id))

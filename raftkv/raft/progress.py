"""What a leader knows of one follower, and how fast it may send (thesis 3.5, 10.2.2).

PROBE ──accepted──▶ REPLICATE        PROBE: one append at a time, to find where the logs agree
  ▲ ◀──rejected/unreachable──┘       REPLICATE: many appends in flight, bounded in number and bytes
  └──── sent ──▶ SNAPSHOT ──done──▶ PROBE

Appends that overtake each other are rejected, and what is sent anew overtakes itself again: each rejection halves the
number that may be in flight, each acceptance makes it one more, as TCP does it.
"""

from collections import deque
from enum import Enum


class ProgressState(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower as the leader sees it.

    Invariants:
    1. `match < next`; `match` never decreases while the leader leads.
    2. `_inflight_bytes` is the sum over `_inflight`; both are empty unless in REPLICATE.
    3. `1 <= _window <= _max_messages`.
    """

    __slots__ = (
        "_inflight",
        "_inflight_bytes",
        "_max_bytes",
        "_max_messages",
        "_window",
        "active",
        "match",
        "next",
        "pending_snapshot",
        "probe_sent",
        "state",
    )

    def __init__(self, *, match: int, next_index: int, max_messages: int, max_bytes: int, active: bool = False) -> None:
        self.state = ProgressState.PROBE
        self.match = match
        self.next = next_index
        self.active = active
        self.probe_sent = False
        self.pending_snapshot = 0
        self._inflight: deque[tuple[int, int]] = deque()
        self._inflight_bytes = 0
        self._window = self._max_messages = max_messages
        self._max_bytes = max_bytes

    def paused(self) -> bool:
        """Whether nothing may be sent now."""
        if self.state is ProgressState.PROBE:
            return self.probe_sent
        if self.state is ProgressState.SNAPSHOT:
            return True
        return self.full()

    def full(self) -> bool:
        """Whether as much is in flight as may be."""
        return len(self._inflight) >= self._window or self._inflight_bytes >= self._max_bytes

    def sent(self, last_index: int, size: int) -> None:
        """An append left whose entries end at `last_index` and hold `size` bytes of data."""
        if self.state is ProgressState.PROBE:
            self.probe_sent = True
        elif last_index >= self.next:
            self.next = last_index + 1
            self._inflight.append((last_index, size))
            self._inflight_bytes += size

    def accepted(self, index: int) -> bool:
        """The follower matches up to `index`; whether that is news."""
        news = index > self.match
        if news:
            self.match = index
            self.probe_sent = False
            if self._window < self._max_messages:
                self._window += 1
        self.next = max(self.next, index + 1)
        inflight = self._inflight
        while inflight and inflight[0][0] <= index:
            self._inflight_bytes -= inflight.popleft()[1]
        return news

    def rejected(self, index: int, hint: int) -> bool:
        """The follower refused the append after `index`; whether the answer was to something recent."""
        if self.state is ProgressState.REPLICATE:
            if index <= self.match:
                return False
            self.next = self.match + 1
            self._window = max(1, self._window // 2)
            return True
        if self.next - 1 != index:
            return False
        self.next = max(min(index, hint + 1), self.match + 1)
        self.probe_sent = False
        return True

    def heard(self) -> None:
        """A heartbeat came back: a lost probe may be repeated."""
        self.probe_sent = False

    def become_probe(self) -> None:
        after_snapshot = self.pending_snapshot if self.state is ProgressState.SNAPSHOT else 0
        self._reset(ProgressState.PROBE)
        self.next = max(self.match, after_snapshot) + 1

    def become_replicate(self) -> None:
        self._reset(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        self._reset(ProgressState.SNAPSHOT)
        self.pending_snapshot = index

    def _reset(self, state: ProgressState) -> None:
        self.state = state
        self.probe_sent = False
        self.pending_snapshot = 0
        self._inflight.clear()
        self._inflight_bytes = 0

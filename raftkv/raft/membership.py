"""Who takes part: now, and at the point in the log that a snapshot stands for (thesis chapter 4)."""

from .messages import ConfState, NodeId


class Membership:
    """The configuration in force and those that the log still holds.

    A configuration takes effect when it is applied. A snapshot must name the members of its own point in the log, not
    those of today: whoever installs it applies the later changes itself.

    Invariants:
    1. `_history` is in order of index; its first item is the one in force at the snapshot point, its last the current.
    """

    __slots__ = ("_history", "current", "voters")

    def __init__(self, conf_state: ConfState, index: int) -> None:
        self._history = [(index, conf_state)]
        self._enter(conf_state)

    def _enter(self, conf_state: ConfState) -> None:
        self.current = conf_state
        self.voters: tuple[NodeId, ...] = tuple(sorted({*conf_state.voters, *conf_state.voters_outgoing}))

    @property
    def at_snapshot(self) -> ConfState:
        """The configuration at the snapshot point."""
        return self._history[0][1]

    def at(self, index: int) -> ConfState:
        """The configuration at an index that is applied and not before the snapshot point."""
        return next(conf_state for start, conf_state in reversed(self._history) if start <= index)

    def apply(self, conf_state: ConfState, index: int) -> None:
        """Put the configuration of the entry at `index` in force."""
        self._history.append((index, conf_state))
        self._enter(conf_state)

    def compact(self, index: int) -> None:
        """Move the snapshot point up to `index`."""
        while len(self._history) > 1 and self._history[1][0] <= index:
            del self._history[0]

    def restore(self, conf_state: ConfState, index: int) -> None:
        """Begin again at a snapshot."""
        self._history = [(index, conf_state)]
        self._enter(conf_state)

"""Which endpoint a call goes to, how long, and whether it may go to another: the rules, without I/O.

Both clients drive an `Attempts` per call. The rules:

1. A request is sent only over a connection that is ready. Until then nothing was sent, and any request may go to
   another endpoint; when none can be reached within the dial timeout the call ends in `NotConnected`.
2. A read that a server could not answer (UNAVAILABLE) is asked once more, at another endpoint if there is one, and
   at most once at each.
3. A write that was sent is never sent again, with one exception: a server that says `no leader` did not propose it.
   Then, as with reads, others are asked until the call's time is up: an election takes a second.
4. An endpoint that could not be reached or did not answer is not the first choice of the next call.
"""

from collections.abc import Sequence

from raftkv import errors
from raftkv.client.errors import ClientError, NotConnected, classify
from raftkv.status import Code

PAUSE_SECONDS = 0.1
"""Between two rounds through all endpoints."""
LAST_SHARE = 0.25
"""Of a call's time that is left for the last attempt: a write cut off by the deadline has an unknown outcome."""


class Rotation:
    """The endpoints of a client; `current` is where the next call goes first."""

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = tuple(targets)
        self._index = 0

    @property
    def current(self) -> str:
        """The target in use."""
        return self.targets[self._index]

    def leave(self, target: str) -> None:
        """Move on from a target, unless another call did already."""
        if self.current == target:
            self._index = (self._index + 1) % len(self.targets)


class Attempts:
    """One call's way through the endpoints. Times are seconds of one monotonic clock, handed in as `now`."""

    def __init__(
        self,
        rotation: Rotation,
        *,
        read: bool,
        now: float,
        timeout: float,
        dial_timeout: float,
        only: str | None = None,
    ) -> None:
        """`timeout` bounds the call, `dial_timeout` each search for a connection; `only` pins the call to a target."""
        self._rotation = rotation
        self._only = only
        self._read = read
        self._deadline = now + timeout
        self._last_start = now + timeout * (1 - LAST_SHARE) - PAUSE_SECONDS
        self._dial_timeout = dial_timeout
        self._dial_until = min(self._deadline, now + dial_timeout)
        self._endpoints = 1 if only else len(rotation.targets)
        self._unconnected = 0
        self._unanswered = 0

    @property
    def target(self) -> str:
        """Where to go now."""
        return self._only or self._rotation.current

    def connect_seconds(self, now: float) -> float:
        """How long to wait for a connection to `target`, so that each endpoint gets its share."""
        return max(0.0, min(self._dial_until - now, self._dial_timeout / self._endpoints))

    def call_seconds(self, now: float) -> float:
        """How long the request may take once it is sent."""
        return max(0.0, self._deadline - now)

    def unconnected(self, target: str, now: float) -> float:
        """Take note that `target` could not be reached; seconds to pause before the next attempt.

        Raises:
            NotConnected: there was time enough.
        """
        self._rotation.leave(target)
        self._unconnected += 1
        if now >= self._dial_until:
            tried = self._only or ", ".join(self._rotation.targets)
            raise NotConnected(Code.UNAVAILABLE, f"could not connect to {tried}")
        if self._unconnected % self._endpoints:
            return 0.0
        return min(PAUSE_SECONDS, self._dial_until - now)

    def failed(self, target: str, code: Code, message: str, now: float) -> float:
        """Take note of how a request that was sent ended; seconds to pause before it is sent again.

        Raises:
            ClientError: it must not or need not be.
        """
        error = classify(code, message, read=self._read)
        if code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            self._rotation.leave(target)
        if self._only or now >= self._last_start or not self._may_repeat(error):
            raise error
        self._dial_until = min(self._deadline, now + self._dial_timeout)
        return PAUSE_SECONDS if isinstance(error, errors.NoLeader) else 0.0

    def _may_repeat(self, error: ClientError) -> bool:
        if isinstance(error, errors.NoLeader):
            return True
        self._unanswered += 1
        return self._read and error.code is Code.UNAVAILABLE and self._unanswered < max(2, self._endpoints)

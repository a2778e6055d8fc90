"""One client's stream: its watchers and the answers that wait for it, in one queue.

Everything a stream is told goes through the queue, so an answer never overtakes another. The queue is bounded: a
watcher whose events find it full falls behind, and reads them from history once the client has taken what waits. While
all queues together hold as much as they may, one is full as soon as anything waits in it.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from raftkv import errors
from raftkv.mvcc.interval import EVERYTHING, Interval, interval
from raftkv.pb import rpc_pb2
from raftkv.status import GO_NAMES, Code
from raftkv.watch import response
from raftkv.watch.event import NO_DELETE, NO_PUT, PREV_KV, Body

if TYPE_CHECKING:
    from raftkv.watch.hub import Hub

QUEUE_BYTES = 256 << 10
"""Events no longer join a queue of this size; a single response may be larger, for it cannot be cut."""
RESUME_BYTES = QUEUE_BYTES // 2
SEND_BYTES = 64 << 10
SHARED_BYTES = 1 << 10
"""Of this size on, what waits in many queues counts once: it is there once."""

EMPTY_RANGE = "mvcc: watcher range is empty"
DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"
TOO_MANY = (
    f"rpc error: code = {GO_NAMES[Code.RESOURCE_EXHAUSTED]} desc = raftkv: watchers hold as much memory as they may"
)

WATCHER_BYTES = 1 << 10
"""What a watcher holds besides its keys; measured, over many of one stream, 0.9 KiB."""


class Watcher:
    """One watcher: what it watches, in which form, and from which revision on."""

    __slots__ = ("form", "fragment", "id", "next_revision", "progress", "quiet", "span", "stream")

    def __init__(self, stream: "WatchStream", watch_id: int, span: Interval, request: rpc_pb2.WatchCreateRequest):
        self.stream = stream
        self.id = watch_id
        self.span = span
        self.form = _form(request)
        self.fragment = request.fragment
        self.progress = request.progress_notify
        self.quiet = True
        """Nothing was sent to it since the last periodic progress."""
        self.next_revision = 0
        """It is told nothing of revisions below; while it is behind, it has been told everything below.

        A current watcher that has begun has the revision at which it became current.
        """

    @property
    def held_bytes(self) -> int:
        """The memory that it is counted for."""
        first, end = self.span
        return WATCHER_BYTES + len(first) + len(end or b"")


def _nobody() -> None:
    pass


class WatchStream:
    """The watchers of one client, and what it is to be told.

    Invariants:
    1. A watcher in `behind` is not in the hub's index; any other one of `watchers` is.
    2. Answers leave in the order in which they joined the queue.
    """

    __slots__ = (
        "_hub",
        "_next_id",
        "_pieces",
        "_progress_due",
        "_ready",
        "_shared",
        "answers",
        "behind",
        "queued_bytes",
        "watchers",
    )

    def __init__(self, hub: "Hub", ready: Callable[[], None]) -> None:
        """`ready` is called when the queue is no longer empty."""
        self._hub = hub
        self._ready = ready
        self._next_id = 0
        self._pieces: deque[bytes] = deque()
        self._shared = 0
        """How many of these are so large that they count once."""
        self._progress_due = False
        self.queued_bytes = 0
        self.answers = 0
        """Messages ever queued, for metrics."""
        self.watchers: dict[int, Watcher] = {}
        self.behind: dict[Watcher, None] = {}

    @property
    def full(self) -> bool:
        """Whether events must wait outside; requests that ask for answers should wait, too."""
        return self.queued_bytes >= QUEUE_BYTES or (self.queued_bytes > 0 and self._hub.clogged)

    @property
    def has_room(self) -> bool:
        """Whether watchers that are behind may go on reading history."""
        return self.queued_bytes <= RESUME_BYTES and (not self.queued_bytes or not self._hub.clogged)

    # What the client asks

    def create(self, request: rpc_pb2.WatchCreateRequest, *, bounded: bool = True) -> Code:
        """Create a watcher, or answer why not; how it went. `bounded`: not while watchers hold as much as they may."""
        problem = self._problem(request)
        if problem is None and bounded and self._hub.crowded:
            self._hub.refused += 1
            problem = Code.RESOURCE_EXHAUSTED, TOO_MANY
        if problem is not None:
            code, reason = problem
            self.refuse(reason)
            return code
        watcher = Watcher(self, request.watch_id or self._free_id(), span(request), request)
        self.watchers[watcher.id] = watcher
        self._hub.watcher_bytes += watcher.held_bytes
        self._put(response.created(self._hub.header(), watcher.id))
        self._hub.join(watcher, request.start_revision)
        return Code.OK

    def refuse(self, reason: str) -> None:
        """Answer that a watcher is not created."""
        self._put(response.refused(self._hub.header(), reason))

    def _problem(self, request: rpc_pb2.WatchCreateRequest) -> tuple[Code, str] | None:
        if request.start_revision < 0:
            return errors.Compacted.CODE, errors.Compacted.TEXT
        first, end = span(request)
        if end is not None and end <= first:
            return Code.INVALID_ARGUMENT, EMPTY_RANGE
        if request.watch_id in self.watchers and request.watch_id:
            return Code.INVALID_ARGUMENT, DUPLICATE_ID
        return None

    def _free_id(self) -> int:
        while self._next_id in self.watchers:
            self._next_id += 1
        self._next_id += 1
        return self._next_id - 1

    def cancel(self, watch_id: int, reason: str = "") -> None:
        """End a watcher; an unknown one is ignored. The client hears the reason if it did not ask for that."""
        watcher = self.watchers.get(watch_id)
        if watcher is not None:
            self._forget(watcher)
            self._put(response.canceled(self._hub.header(), watch_id, reason=reason))

    def request_progress(self) -> None:
        """Answer how far the stream has come, as soon as all its watchers have come as far as the store."""
        if self.watchers:
            self._progress_due = True
            self.progress_if_due()

    def close(self) -> None:
        """Forget all watchers and answers, and whom to tell, who holds this."""
        self._ready = _nobody
        for watcher in list(self.watchers.values()):
            self._forget(watcher)
        self._take_all()
        self._hub.closed(self)

    # What the hub tells

    def push(self, watcher: Watcher, body: Body) -> None:
        """Queue a response of events; the queue is not full."""
        watcher.quiet = False
        self._hub.events_told += len(body.parts)
        if watcher.fragment and body.size + response.MAX_HEAD_BYTES >= self._hub.fragment_bytes:
            for part in response.fragments(body, watcher.id, self._hub.fragment_bytes):
                self._put(part)
            return
        head, data = response.head(body, watcher.id), body.data
        if not self.queued_bytes:
            self._ready()
        self.answers += 1
        self._pieces.append(head)
        self._pieces.append(data)
        size = len(head) + body.size
        self.queued_bytes += size
        if body.size < SHARED_BYTES:
            self._hub.queued_bytes += size
        else:
            self._hub.queued_bytes += len(head)
            self._shared += 1
            self._hub.hold(data)

    def compacted(self, watcher: Watcher, compact_revision: int) -> None:
        """End a watcher whose history is gone. etcd leaves the revision out of this header."""
        self._forget(watcher)
        self._put(response.canceled(self._hub.header(0), watcher.id, compact_revision))

    def progress_if_due(self) -> None:
        """Answer a request for progress if the stream has come as far as the store; else it stays due."""
        if not self._progress_due:
            return
        if not self.watchers:
            self._progress_due = False
        elif self.full or not all(map(self._hub.is_current, self.watchers.values())):
            self._hub.progress_due(self)
        else:
            self._progress_due = False
            self._put(response.message(self._hub.header(), response.NO_ID))

    def periodic_progress(self) -> None:
        """Tell watchers that asked for it, and were told nothing since the last time, how far they have come."""
        for watcher in self.watchers.values():
            if not watcher.progress:
                continue
            if watcher.quiet and not self.full and self._hub.is_current(watcher):
                self._put(response.message(self._hub.header(), watcher.id))
            watcher.quiet = True

    # What the driver takes

    def take(self) -> bytes:
        """Take what waits, as length-prefixed messages, about `SEND_BYTES` at a time; empty: nothing waits."""
        data = self._take_all() if self.queued_bytes <= SEND_BYTES else self._take_some()
        if self.behind and self.has_room:
            self._hub.resume(self)
        self.progress_if_due()
        return data

    def _take_all(self) -> bytes:
        if self._shared:
            return self._take_some(self.queued_bytes)
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._hub.queued_bytes -= self.queued_bytes
        self.queued_bytes = 0
        return data

    def _take_some(self, most: int | None = None) -> bytes:
        pieces, hub = self._pieces, self._hub
        most = SEND_BYTES if most is None else most
        taken = []
        size = 0
        while size < most and pieces:
            piece = pieces.popleft()
            taken.append(piece)
            size += len(piece)
            if len(piece) < SHARED_BYTES:
                hub.queued_bytes -= len(piece)
            else:
                self._shared -= 1
                hub.let_go(piece)
        self.queued_bytes -= size
        return b"".join(taken)

    def _put(self, piece: bytes) -> None:
        if not self.queued_bytes:
            self._ready()
        self.answers += 1
        self._pieces.append(piece)
        self.queued_bytes += len(piece)
        if len(piece) < SHARED_BYTES:
            self._hub.queued_bytes += len(piece)
        else:
            self._shared += 1
            self._hub.hold(piece)

    def _forget(self, watcher: Watcher) -> None:
        del self.watchers[watcher.id]
        self._hub.watcher_bytes -= watcher.held_bytes
        self._hub.leave(watcher)


def span(request: rpc_pb2.WatchCreateRequest) -> Interval:
    """The interval that a watcher is to watch."""
    return interval(request.key or EVERYTHING, request.range_end)


def _form(request: rpc_pb2.WatchCreateRequest) -> int:
    form = PREV_KV if request.prev_kv else 0
    for unwanted in request.filters:
        if unwanted == rpc_pb2.WatchCreateRequest.NOPUT:
            form |= NO_PUT
        elif unwanted == rpc_pb2.WatchCreateRequest.NODELETE:
            form |= NO_DELETE
    return form

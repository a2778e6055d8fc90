"""Whether a member is well: the checks behind /health, /livez and /readyz, as etcd defines them.

/livez asks whether a restart would help, /readyz whether to send requests here, and /health is the older question that
load balancers know.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from raftkv.pb import rpc_pb2
from raftkv.server.server import Server
from raftkv.status import StatusError

logger = logging.getLogger(__name__)

Check = Callable[[], Awaitable[None]]
"""Returns when all is well; raises `Unwell` or the error of the read that failed."""

_FIRST_KEY = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", limit=1, keys_only=True, serializable=True)


class Unwell(Exception):
    """A check has failed; the text says why."""


class Checks:
    """The checks of one member, and how they went."""

    def __init__(self, server: Server, alarms: Callable[[], Iterable[str]] = tuple) -> None:
        """`alarms` names the alarms that are on, of any member: NOSPACE, CORRUPT."""
        self._server = server
        self._alarms = alarms
        self.live: dict[str, Check] = {"serializable_read": self.serializable_read}
        self.ready: dict[str, Check] = {
            "data_corruption": self.data_corruption,
            "serializable_read": self.serializable_read,
            "linearizable_read": self.linearizable_read,
            "non_learner": self.non_learner,
        }
        self.health_successes = 0
        self.health_failures = 0
        self.results: Counter[tuple[str, str, str]] = Counter()
        """How often each check ended how: (livez or readyz, name, success or error)."""
        self.last: dict[tuple[str, str], bool] = {}
        """How each check went the last time, by (livez or readyz, name)."""

    async def health(self, excluded_alarms: Collection[str], *, serializable: bool) -> str:
        """Run the checks of /health in etcd's order; why the member is not healthy, or nothing."""
        reason = await self._health(excluded_alarms, serializable=serializable)
        if reason:
            self.health_failures += 1
            logger.warning("the member is not healthy: %s", reason)
        else:
            self.health_successes += 1
        return reason

    async def _health(self, excluded_alarms: Collection[str], *, serializable: bool) -> str:
        for alarm in self._alarms():
            if alarm not in excluded_alarms:
                return f"ALARM {alarm}"
        if not serializable and not self._server.node.leader:
            return "RAFT NO LEADER"
        try:
            await (self.serializable_read() if serializable else self.linearizable_read())
        except StatusError as error:
            return f"RANGE ERROR:{error.message}"
        return ""

    async def run(self, kind: str, names: Sequence[str]) -> dict[str, str]:
        """Run some checks of a kind (livez, readyz); for each, why it failed, or nothing."""
        checks = self.live if kind == "livez" else self.ready
        outcome = {}
        for name in names:
            try:
                await checks[name]()
            except (Unwell, StatusError) as error:
                outcome[name] = str(error)
                logger.warning("%s check %s failed: %s", kind, name, error)
            else:
                outcome[name] = ""
            self.last[kind, name] = not outcome[name]
            self.results[kind, name, "error" if outcome[name] else "success"] += 1
        return outcome

    async def data_corruption(self) -> None:
        """Fail while a member is known to differ from the others."""
        if "CORRUPT" in self._alarms():
            raise Unwell("alarm activated: CORRUPT")

    async def serializable_read(self) -> None:
        """Read from the local store."""
        self._server.store.range(_FIRST_KEY)

    async def linearizable_read(self) -> None:
        """Read what the cluster agrees on; without a leader this fails only after the time limit of reads."""
        await self._server.linearizable()
        self._server.store.range(_FIRST_KEY)

    async def non_learner(self) -> None:
        """Fail while this member has no vote: clients must not be sent here."""
        if self._server.node.id not in self._server.node.conf_state.voters:
            raise Unwell("not supported for learner")

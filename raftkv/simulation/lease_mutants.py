"""Bugs on purpose of leases and locks: more of `raftkv.simulation.mutants`."""

from collections.abc import Callable, Sequence
from typing import Any

from raftkv.api.turns import Turn
from raftkv.lease import Lessor
from raftkv.server.leases import Leases


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def renews_without_asking_a_quorum() -> None:
    """A leader promises a renewal without making sure that it still leads."""

    async def renew_here(self: Any, lease_ids: Sequence[int]) -> list[int]:
        await self._primary_term()
        for lease_id in lease_ids:
            self.lessor.renew(lease_id)
        leases = [self.store.get(lease_id) for lease_id in lease_ids]
        return [0 if lease is None else lease.ttl for lease in leases]

    _replace(Leases, "renew_here", lambda _: renew_here)


def renews_what_is_gone() -> None:
    """A renewal is promised although the lease has ended (etcd PR 20615)."""

    async def renew_here(self: Any, lease_ids: Sequence[int]) -> list[int]:
        return [ttl or 2 for ttl in await original(self, lease_ids)]

    original = Leases.renew_here
    _replace(Leases, "renew_here", lambda _: renew_here)


def new_leaders_do_not_extend_leases() -> None:
    """A new leader counts leases from their grant, as if nobody had renewed them."""

    def take_up(self: Any, lease: Any) -> None:
        if lease.id not in self._expiry:
            self._set_expiry(lease.id, self._now() + lease.known / 3)

    _replace(Lessor, "_take_up", lambda _: take_up)


def leases_expire_too_soon() -> None:
    """The primary's clock runs a tenth too fast."""
    original = Lessor._now
    _replace(Lessor, "_now", lambda _: lambda self: original(self) * 1.1)


def locks_are_given_to_the_dead() -> None:
    """Whoever waited for a lock is given it although its lease has ended meanwhile (etcd #11456)."""

    async def wait(self: Any) -> bool:
        await original(self)
        self.revision = self._server.store.revision
        return True

    original = Turn.wait
    _replace(Turn, "wait", lambda _: wait)


LEASE_MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__.replace("_", "-"): mutant
    for mutant in (
        renews_without_asking_a_quorum,
        renews_what_is_gone,
        new_leaders_do_not_extend_leases,
        leases_expire_too_soon,
        locks_are_given_to_the_dead,
    )
}

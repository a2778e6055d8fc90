"""What watchers, leases and locks were promised, compared with the replayed log."""

from collections.abc import Mapping, Sequence

from raftkv.simulation.history import Change, History, Told, Watched
from raftkv.simulation.invariants import Violation
from raftkv.simulation.model import Model, inside
from raftkv.simulation.scheduler import SECOND


def check_watches(history: History, model: Model, *, drained: bool) -> None:
    """Every watcher was told exactly what happened, in order, each revision whole and once (I14).

    `drained`: the run has waited until all of them had come to its end.

    Raises:
        Violation
    """
    for number, watched in enumerate(history.watches):
        for wanted, compacted in watched.gaps:
            if not any(revision == compacted for _, revision in model.compactions):
                raise Violation(f"I14: watcher {number} wanted {wanted} and heard of a compaction at {compacted}")
        for told in watched.segments:
            _check_told(number, watched, told, model)
        if drained and watched.segments:
            last = watched.segments[-1]
            if last.reached < model.revision and _wanted(watched, model, max(last.start, last.reached + 1)):
                raise Violation(f"I14 reliable: watcher {number} never heard of what came after {last.reached}")


def _wanted(watched: Watched, model: Model, first: int, last: int | None = None) -> list[Change]:
    found: list[Change] = []
    for revision in range(first, (model.revision if last is None else last) + 1):
        for change in model.events.get(revision, ()):
            if not inside(change.key, watched.key, watched.range_end):
                continue
            if (change.deleted and watched.no_delete) or (not change.deleted and watched.no_put):
                continue
            found.append(change if watched.prev_kv else change._replace(previous=None))
    return found


def _check_told(number: int, watched: Watched, told: Told, model: Model) -> None:
    heard = [change for batch in told.batches for change in batch]
    wanted = _wanted(watched, model, told.start, told.reached)
    if heard != wanted:
        at = next((place for place, pair in enumerate(zip(heard, wanted, strict=False)) if pair[0] != pair[1]), None)
        if at is None:
            at = min(len(heard), len(wanted))
        raise Violation(
            f"I14 watch: watcher {number} of {watched.key!r} to {watched.range_end!r} from {told.start} was told "
            f"{heard[at : at + 1] or 'nothing'} where {wanted[at : at + 1] or 'nothing'} belongs "
            f"(event {at}, {len(heard)} of {len(wanted)} up to {told.reached})"
        )
    for before, after in zip(told.batches, told.batches[1:], strict=False):
        if before and after and before[-1].revision == after[0].revision:
            raise Violation(f"I14 atomic: watcher {number} was told of revision {after[0].revision} in two responses")


def check_leases(
    history: History, model: Model, committed_at: Sequence[int], *, fastest: float, drained_at: int | None
) -> None:
    """No lease has ended by time before its time was up since it was granted or renewed last, and none is renewed after
    its end (I16).

    `committed_at` may be later than each entry was committed; then less is found. `fastest` is the rate of the fastest
    clock. From `drained_at` (ns) on nobody has renewed anything, and all leases had the time to end (I17).

    Raises:
        Violation
    """
    asked = _asked(history, model)
    for lease_id, ends in model.ended.items():
        grants = model.granted.get(lease_id, [])
        for end in ends:
            ended = committed_at[end.index - 1]
            if not any(index > end.index for index, _ in grants):
                for when, _ in asked.get(lease_id, ()):
                    if when > ended:
                        raise Violation(
                            f"I16: lease {lease_id:x} was renewed at {when / SECOND:.3f} s and had ended at "
                            f"{ended / SECOND:.3f} s"
                        )
            if not end.expired:
                continue
            since = max((index for index, _ in grants if index < end.index), default=0)
            for when, ttl in asked.get(lease_id, ()):
                if since and when < committed_at[since - 1] - 60 * SECOND:
                    continue
                if when <= ended < when + int(ttl / fastest * SECOND):
                    raise Violation(
                        f"I16: lease {lease_id:x} was granted or renewed at {when / SECOND:.3f} s for {ttl} s and "
                        f"expired at {ended / SECOND:.3f} s"
                    )
    if drained_at is not None and model.leases:
        raise Violation(f"I17: leases {[hex(lease) for lease in model.leases]} have not expired")


def _asked(history: History, model: Model) -> Mapping[int, list[tuple[int, int]]]:
    asked: dict[int, list[tuple[int, int]]] = {}
    for lease_id, when, ttl in history.renewals:
        asked.setdefault(lease_id, []).append((when, ttl))
    for operation in history.operations:
        outcome = model.outcomes.get(operation.number)
        if operation.kind == "grant" and operation.ok and outcome is not None and isinstance(outcome.answer, tuple):
            lease_id, ttl = outcome.answer
            asked.setdefault(lease_id, []).append((operation.invoked, ttl))
    return asked

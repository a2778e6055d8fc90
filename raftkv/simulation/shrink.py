"""Making a failing run small: the fewest faults and the quietest clients that still break the same promise.

Faults are left out in ever smaller groups (delta debugging, Zeller and Hildebrandt); then the run is shortened and
clients are sent away, as long as it still fails in the same way.
"""

from collections.abc import Callable
from dataclasses import replace

from raftkv.simulation.faults import Fault, plan_faults
from raftkv.simulation.options import Options
from raftkv.simulation.run import run


def shrink(options: Options, tell: Callable[[str], None]) -> tuple[Options, list[Fault]]:
    """Look for a smaller run that breaks the same promise; the run as it was when it breaks none."""
    plan = plan_faults(options)
    first = run(options, plan).violation
    if not first:
        tell("nothing to shrink: every check holds")
        return options, plan
    name = first.split()[0]

    def fails(options: Options, plan: list[Fault]) -> bool:
        return run(_copy(options), plan).violation.split(" ")[0] == name

    plan = fewest(plan, lambda left: fails(options, left))
    tell(f"{len(plan)} faults are left")
    for smaller in _smaller(options):
        candidate = smaller(options)
        if candidate is not None and fails(candidate, plan):
            options = candidate
            tell(f"still fails with {options.seconds:g} s, {options.clients} clients, {options.watchers} watchers")
    plan = fewest(plan, lambda left: fails(options, left))
    return _copy(options), plan


def _copy(options: Options) -> Options:
    """Options whose weather no run has changed yet."""
    return replace(options, weather=replace(options.weather))


def fewest(plan: list[Fault], fails: Callable[[list[Fault]], bool]) -> list[Fault]:
    """Leave out faults, in groups and one by one, as long as it still fails."""
    size = max(1, len(plan) // 2)
    while plan:
        start = 0
        removed = False
        while start < len(plan):
            left = plan[:start] + plan[start + size :]
            if fails(left):
                plan, removed = left, True
            else:
                start += size
        if size == 1 and not removed:
            break
        size = max(1, size // 2)
    return plan


def _smaller(options: Options) -> list[Callable[[Options], Options | None]]:
    def shorter(factor: float) -> Callable[[Options], Options]:
        return lambda options: replace(_copy(options), seconds=options.seconds * factor)

    return [
        shorter(0.5),
        shorter(0.5),
        shorter(0.75),
        lambda options: replace(_copy(options), watchers=0) if options.watchers else None,
        lambda options: replace(_copy(options), lockers=0) if options.lockers else None,
        lambda options: replace(_copy(options), clients=1) if options.clients > 1 else None,
        lambda options: replace(_copy(options), rate=options.rate / 2),
    ]

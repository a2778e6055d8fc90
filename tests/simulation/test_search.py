"""The search finds bugs that are there, and makes what it finds small."""

import pytest

from raftkv.simulation.faults import Fault
from raftkv.simulation.shrink import fewest
from tests.simulation.searching import sim

MUTANTS = ("forgets-its-vote", "proposes-twice", "leases-expire-too-soon")
"""Of those in docs/guarantees.md, some that are found at once."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_bug_is_found(mutant: str) -> None:
    done = sim("--mutant", mutant, "--seeds", "40", "--jobs", "1")
    assert done.returncode == 1, done.stderr
    assert "look at one: raftkv sim --seed" in done.stderr


def test_a_plan_shrinks_to_the_faults_that_matter() -> None:
    plan = [Fault(float(number), "crash", 1.0, number) for number in range(20)]
    needed = {plan[3], plan[17]}
    tried = []

    def fails(left: list[Fault]) -> bool:
        tried.append(len(left))
        return needed <= set(left)

    assert fewest(plan, fails) == [plan[3], plan[17]]
    assert len(tried) < 60


def test_a_plan_that_fails_without_faults_shrinks_to_nothing() -> None:
    assert fewest([Fault(1.0, "crash", 1.0, 0)], lambda left: True) == []

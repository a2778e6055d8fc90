"""Seeds of this commit, the other half: whole clusters with faults, all checks."""

import pytest

from tests.simulation.searching import LONG_SECONDS, LONG_SEEDS, SHORT_SECONDS, SHORT_SEEDS, search


@pytest.mark.parametrize(("seeds", "seconds"), [(SHORT_SEEDS, SHORT_SECONDS), (LONG_SEEDS, LONG_SECONDS)])
def test_every_check_holds(seeds: int, seconds: int) -> None:
    search(1, seeds, seconds)

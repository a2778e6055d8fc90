"""Two commits are held against each other, and chance is not taken for a difference."""

import json
import random
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import engines
from benchmarks.compare import interval, main, verdict

needs_h2load = pytest.mark.skipif(
    engines.missing({"h2load": engines.PACKAGES["h2load"]}) is not None, reason="not installed: h2load"
)
needs_git = pytest.mark.skipif(not (engines.ROOT / ".git").exists(), reason="the sources are in no repository")


def worktrees() -> str:
    done = subprocess.run(["git", "worktree", "list"], cwd=engines.ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@needs_h2load
@needs_git
def test_a_commit_is_held_against_the_sources_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = worktrees()
    figures = tmp_path / "figures.json"
    arguments = ["--work", "put", "--load", "1x1", "--requests", "20", "--rounds", "5", "--json", str(figures)]
    assert main(["HEAD", ".", *arguments]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| 1 \| Put 256 B \| 1×1 \| .*/s \| .*/s \| \*\*\d+\.\d+\*\* \| \d", out), out
    [cell] = json.loads(figures.read_text())["cells"]
    assert {kind: len(found) for kind, found in cell["figures"].items()} == {"A (HEAD)": 5, "B (.)": 5}
    assert worktrees() == before


def test_what_is_no_commit_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-branch", "."]) == 2
    assert "no-such-branch is no commit here" in capsys.readouterr().err


def test_the_interval_holds_the_true_quotient_about_as_often_as_it_says() -> None:
    rng = random.Random(7)
    held = 0
    for _ in range(60):
        first = [rng.gauss(1000, 100) for _ in range(9)]
        second = [1.3 * rng.gauss(1000, 100) for _ in range(9)]
        middle, low, high = interval(first, second)
        assert low <= middle <= high
        held += low <= 1.3 <= high
    assert held >= 50


def test_a_drift_of_the_machine_touches_both_alike() -> None:
    drift = [1000.0 * 0.8**number for number in range(9)]
    middle, low, high = interval(drift, [1.1 * rate for rate in drift])
    assert (round(middle, 6), round(low, 6), round(high, 6)) == (1.1, 1.1, 1.1)
    assert verdict(low, high) == "B is faster"


@pytest.mark.parametrize(
    ("low", "high", "said"), [(1.01, 1.2, "B is faster"), (0.8, 0.99, "B is slower"), (0.9, 1.1, "no difference seen")]
)
def test_one_within_the_interval_is_no_difference(low: float, high: float, said: str) -> None:
    assert verdict(low, high) == said

"""docs/known-bugs.md and docs/proofs.md name files and tests that are there, docs/guarantees.md all mutants."""

import re
from pathlib import Path

import pytest

from raftkv.simulation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)`|`(test_\w+)`")
PATH = re.compile(r"`(tests/[\w/]+(?:\.py|/))`")


def test_every_bug_has_a_test_that_is_there() -> None:
    text = (ROOT / "docs" / "known-bugs.md").read_text()
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert numbers == list(range(1, 31))
    place, found = "", 0
    for path, test in NAMED.findall(text):
        if path:
            place = (ROOT / path).read_text()
        else:
            found += 1
            assert f"def {test}(" in place, test
    assert found >= len(numbers)


@pytest.mark.parametrize("page", ["known-bugs.md", "proofs.md"])
def test_every_file_that_is_named_is_there(page: str) -> None:
    named = PATH.findall((ROOT / "docs" / page).read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_table_of_mutants_has_each_that_there_is() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == sorted(MUTANTS)
    assert f"All {len(MUTANTS)} are found" in text

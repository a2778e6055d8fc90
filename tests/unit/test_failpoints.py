"""Every point at which a test may let the process die is documented, and some test does it."""

import re
from pathlib import Path

import pytest

from raftkv.failpoints import parse

ROOT = Path(__file__).parents[2]
CALL = re.compile(r"\bfailpoint\(\"([a-z-]+)\"\)")
NAMES = sorted({name for file in (ROOT / "raftkv").rglob("*.py") for name in CALL.findall(file.read_text())})


@pytest.mark.parametrize("name", NAMES)
def test_a_point_is_documented_and_tried(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "formats.md").read_text()
    tests = [file for file in (ROOT / "tests" / "cluster").glob("*.py") if f'"{name}"' in file.read_text()]
    assert tests, f"no test of a real process dies at {name}"


def test_points_are_armed_by_name() -> None:
    assert len(NAMES) >= 12
    assert parse("a=exit,b-c=exit") == {"a", "b-c"}
    assert parse("") == frozenset()
    with pytest.raises(ValueError, match="not of the form"):
        parse("a=panic")

"""What `raftkv.client` offers is there when asked for, and nothing else."""

import subprocess
import sys

import pytest

import raftkv.client


def test_every_name_is_found_where_it_was_made() -> None:
    assert set(raftkv.client.__all__) <= set(dir(raftkv.client))
    for name in raftkv.client.__all__:
        found = getattr(raftkv.client, name)
        assert found.__name__ == name
        assert getattr(sys.modules[found.__module__], name) is found
        assert found.__module__.startswith("raftkv.client.")


def test_every_name_can_be_the_first() -> None:
    script = "import sys, raftkv.client as c\nfor name in sys.argv[1:]: getattr(c, name)"
    for name in (*raftkv.client.__all__, "errors"):
        subprocess.run([sys.executable, "-c", script, name], check=True, timeout=60)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nope'"):
        raftkv.client.Nope  # type: ignore[attr-defined]  # noqa: B018

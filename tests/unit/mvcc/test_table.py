"""Large mappings: none of their insertions copies all of them."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.mvcc.table import Parts, Table

KEYS = 90_000
"""A dict that grows to so many is copied on the way, behind 43,690 and 87,381; the copies take megabytes."""
STEP = 100
STEP_BYTES = 512 << 10


@pytest.mark.parametrize("kind", [Parts, Table])
def test_no_insertion_copies_all_there_is(kind: type[Parts[int]] | type[Table[int]]) -> None:
    mapping = kind()
    keys = [b"%d" % number for number in range(KEYS)]
    tracemalloc.start()
    try:
        for first in range(0, KEYS, STEP):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            for key in keys[first : first + STEP]:
                mapping[key] = 0
            assert tracemalloc.get_traced_memory()[1] - before < STEP_BYTES
    finally:
        tracemalloc.stop()


KEY = st.binary(max_size=2)


@given(st.lists(st.tuples(st.sampled_from(("set", "pop", "del")), KEY, st.integers())), st.lists(KEY, unique=True))
def test_a_table_is_a_dict_in_key_order(steps: list[tuple[str, bytes, int]], loaded: list[bytes]) -> None:
    table: Table[int] = Table()
    model = {key: place for place, key in enumerate(loaded)}
    table.update(model)
    for what, key, value in steps:
        if what == "set":
            table[key] = model[key] = value
        elif key not in model:
            with pytest.raises(KeyError):
                table.pop(key)
        elif what == "pop":
            assert table.pop(key) == model.pop(key)
        else:
            del table[key], model[key]
        assert (key in table, table.get(key)) == (key in model, model.get(key))
    ordered = sorted(model)
    assert list(table) == list(table.irange()) == ordered
    assert len(table) == len(model)
    assert table.values_between(1, 3) == [model[key] for key in ordered[1:3]]
    assert [table[key] for key in table.islice(0, 2)] == [model[key] for key in ordered[:2]]
    assert [table.bisect_left(key) for key in ordered] == list(range(len(ordered)))

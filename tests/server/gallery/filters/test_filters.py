"""Filters against plain Python over random metadata, what a snapshot's table holds, and what is refused."""

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from asymcir_protos import parse_filter
from asymcir_protos.v1 import retrieval_pb2
from asymcir_server.errors import RequestError
from asymcir_server.gallery.filters import MAX_COLUMNS, Selections, columns, selection
from asymcir_server.gallery.metadata import MetadataReader, MetadataWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BIG = 9007199254740993
COMPARISON = retrieval_pb2.Comparison

whole = st.integers(-3, 3) | st.sampled_from([BIG, BIG - 1, 2**63 - 1, -(2**63)])
real = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([-0.0, 1.0, 2.5, float(BIG - 1)])
texts = st.text(st.sampled_from("abAZ é\0%_'\"\U0010ffff\ud7ff\ue000"), max_size=4)
BY_KEY: dict[str, st.SearchStrategy[Any]] = {
    "whole": whole,
    "real": whole | real,
    "text'; DROP TABLE items; --": texts,
    "flag": st.booleans(),
    "mixed": whole | real | texts | st.booleans() | st.just([1]) | st.just({"a": 1}),
}
KEYS = tuple(BY_KEY)
records = st.fixed_dictionaries({}, optional={key: values | st.none() for key, values in BY_KEY.items()})


def write(path: Path, metadata: list[dict[str, Any]]) -> Selections:
    path.unlink(missing_ok=True)
    writer = MetadataWriter(path)
    for row, record in enumerate(metadata):
        assert writer.add(row, str(row), record)
    writer.finish()
    writer.close()
    return Selections(path)


def to_value(value: Any) -> retrieval_pb2.Value:
    if isinstance(value, bool):
        return retrieval_pb2.Value(boolean=value)
    if isinstance(value, int):
        return retrieval_pb2.Value(integer=value)
    return retrieval_pb2.Value(real=value) if isinstance(value, float) else retrieval_pb2.Value(text=value)


@st.composite
def conditions(draw: st.DrawFn) -> retrieval_pb2.Filter:
    key = draw(st.sampled_from(KEYS))
    scalars = BY_KEY[key] if key != "mixed" else whole | real | texts | st.booleans()
    if key == "whole":
        scalars |= real
    kind = draw(st.sampled_from(["comparison", "membership", "existence", "prefix"]))
    if kind == "membership":
        values = draw(st.lists(scalars, min_size=1, max_size=3))
        return retrieval_pb2.Filter(
            membership=retrieval_pb2.Membership(key=key, values=[to_value(value) for value in values])
        )
    if kind == "prefix" and key in (KEYS[2], "mixed"):
        return retrieval_pb2.Filter(prefix=retrieval_pb2.Prefix(key=key, prefix=draw(texts)))
    if kind == "existence":
        return retrieval_pb2.Filter(existence=retrieval_pb2.Existence(key=key))
    value = draw(scalars)
    operator = draw(st.sampled_from([1, 2] if isinstance(value, bool) else [1, 2, 3, 4, 5, 6]))
    return retrieval_pb2.Filter(comparison=COMPARISON(key=key, operator=operator, value=to_value(value)))


filters = st.recursive(
    conditions(),
    lambda inner: (
        st.builds(lambda one: retrieval_pb2.Filter(negated=one), inner)
        | st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: retrieval_pb2.Filter(all_of=retrieval_pb2.FilterList(filters=parts))
        )
        | st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: retrieval_pb2.Filter(any_of=retrieval_pb2.FilterList(filters=parts))
        )
    ),
    max_leaves=6,
)


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def compare(held: Any, operator: int, value: Any) -> bool:
    if kind_of(held) != kind_of(value):
        return False
    return bool(
        {
            COMPARISON.EQUAL: lambda: held == value,
            COMPARISON.LESS: lambda: held < value,
            COMPARISON.LESS_OR_EQUAL: lambda: held <= value,
            COMPARISON.GREATER: lambda: held > value,
            COMPARISON.GREATER_OR_EQUAL: lambda: held >= value,
        }[operator]()
    )


def holds(message: retrieval_pb2.Filter, record: dict[str, Any]) -> bool:
    """Say in plain Python whether a picture satisfies a filter."""
    kind = message.WhichOneof("condition")
    if kind == "negated":
        return not holds(message.negated, record)
    if kind == "all_of":
        return all(holds(part, record) for part in message.all_of.filters)
    if kind == "any_of":
        return any(holds(part, record) for part in message.any_of.filters)
    condition = getattr(message, str(kind))
    held = record.get(condition.key)
    if kind == "comparison":
        value = getattr(condition.value, condition.value.WhichOneof("kind"))
        if condition.operator == COMPARISON.NOT_EQUAL:
            return not compare(held, COMPARISON.EQUAL, value)
        return compare(held, condition.operator, value)
    if kind == "membership":
        return any(compare(held, 1, getattr(value, value.WhichOneof("kind"))) for value in condition.values)
    if kind == "prefix":
        return isinstance(held, str) and held.startswith(condition.prefix)
    return held is not None


# Every key has a value of its type in the first picture, so that no random filter is refused.
FIRST = {"whole": 1, "real": 0.5, KEYS[2]: "a", "flag": True, "mixed": [2]}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.lists(records, max_size=12), messages=st.lists(filters, min_size=1, max_size=12))
def test_rows_equal_plain_python(tmp_path: Path, metadata: list[Any], messages: list[retrieval_pb2.Filter]) -> None:
    metadata = [FIRST, *metadata]
    found = write(tmp_path / "m.sqlite", metadata)
    for message in messages:
        expected = [row for row, record in enumerate(metadata) if holds(message, record)]
        assert found.select(message).tolist() == expected
        assert found.select(message).tolist() == expected  # from the cache
    found.close()


def test_a_missing_value_satisfies_nothing_but_negations(tmp_path: Path) -> None:
    found = write(tmp_path / "m.sqlite", [{"n": 1}, {"n": 2}, {"n": None}, {}])
    rows = {text: found.select(parse_filter(text)).tolist() for text in (
        "n = 1", "n != 1", "not n = 1", "n < 9", "not n < 9", "n in (1, 2)", "n not in (1)", "exists n", "not exists n",
        "n != 1 and exists n", "not (n = 1 or n = 2)", "not (n = 1 and n = 2)",
    )}  # fmt: skip
    assert rows == {
        "n = 1": [0], "n != 1": [1, 2, 3], "not n = 1": [1, 2, 3], "n < 9": [0, 1], "not n < 9": [2, 3],
        "n in (1, 2)": [0, 1], "n not in (1)": [1, 2, 3], "exists n": [0, 1], "not exists n": [2, 3],
        "n != 1 and exists n": [1], "not (n = 1 or n = 2)": [2, 3], "not (n = 1 and n = 2)": [0, 1, 2, 3],
    }  # fmt: skip
    found.close()


def test_columns_have_the_types_of_their_values_and_exact_numbers(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    metadata = [
        {"a": BIG, "b": 2024, "c": "x", "d": True, "e": "x", "f": [1], "g": None, "h": 2**70},
        {"a": 2, "b": 0.5, "c": "y", "d": False, "e": 1, "h": 1},
    ]
    found = write(path, metadata)
    kinds = {column.key: column.type for column in found.columns.by_key.values()}
    assert kinds == {
        "a": "integer", "b": "real", "c": "text", "d": "boolean", "e": "mixed", "f": "mixed", "h": "real",
    }  # fmt: skip
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT * FROM fields").fetchall() == [
            (0, BIG, 2024, "x", 1, "x", 2.0**70, b"\x02"),
            (1, 2, 0.5, "y", 0, 1, 1, None),
        ]
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")]
        assert {f"fields_m{n}" for n in range(7)} <= set(names)
    reader = MetadataReader(path)
    assert json.dumps(reader.metadata(["0"])["0"]) == json.dumps(metadata[0])
    reader.close()
    found.close()


def test_the_most_frequent_keys_get_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rare = [{f"rare{n:03}": n} for n in range(MAX_COLUMNS)]
    found = write(tmp_path / "m.sqlite", [*rare, {"often": 1}, {"often": 2}])
    assert len(found.columns.by_key) == MAX_COLUMNS
    assert next(iter(found.columns.by_key)) == "often"
    with pytest.raises(RequestError, match=f"only the {MAX_COLUMNS} most frequent have.*'rare199' has none"):
        found.select(parse_filter("rare199 = 199"))
    found.close()
    monkeypatch.setattr(columns, "MAX_COUNTED_KEYS", 3)
    found = write(tmp_path / "m.sqlite", rare)
    assert list(found.columns.by_key) == ["rare000", "rare001", "rare002"]
    found.close()


REFUSED = {
    "colr = 'red'": "no picture has 'colr', did you mean 'colour'? The keys are 'colour', 'price', 'flag'",
    "price = 'cheap'": "expected a number for 'price' (real), got the text 'cheap'",
    "colour < 3": "expected a text for 'colour' (text), got the integer 3",
    "colour in ('red', 2.5)": "expected a text for 'colour' (text), got the real 2.5",
    "flag = 1": "expected true or false for 'flag' (boolean), got the integer 1",
    "flag < true": "booleans have no order: expected = or != for 'flag'",
    "price prefix '1'": "expected a key of texts before prefix, 'price' is real",
    " and ".join(["price = 1"] * 65): "at most 64 conditions",
    "(" + "not " * 15 + "price = 1 and price = 2)": "at most 16 filters inside each other",
    f"price in ({','.join(['1'] * 10_001)})": "at most 10000 values",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_refusals_say_what_there_is(tmp_path: Path, text: str) -> None:
    found = write(tmp_path / "m.sqlite", [{"price": 1, "colour": "red", "flag": True}, {"price": 2.5}, {"colour": "x"}])
    with pytest.raises(RequestError) as caught:
        found.select(parse_filter(text))
    assert REFUSED[text] in str(caught.value)
    found.close()


def test_incomplete_messages_are_refused(tmp_path: Path) -> None:
    found = write(tmp_path / "m.sqlite", [{"price": 1}])
    nothing, value = retrieval_pb2.Filter(), retrieval_pb2.Value(integer=1)
    for message, expected in (
        (nothing, "says nothing"),
        (retrieval_pb2.Filter(negated=nothing), "says nothing"),
        (retrieval_pb2.Filter(all_of=retrieval_pb2.FilterList()), "at least one filter in all_of"),
        (retrieval_pb2.Filter(comparison=COMPARISON(key="price", value=value)), "no operator"),
        (retrieval_pb2.Filter(comparison=COMPARISON(key="price", value=value, operator=77)), "no operator"),
        (retrieval_pb2.Filter(comparison=COMPARISON(key="price", operator=1)), "with no value"),
        (retrieval_pb2.Filter(comparison=COMPARISON(key="price", operator=1, value={"real": math.nan})), "NaN"),
        (retrieval_pb2.Filter(membership=retrieval_pb2.Membership(key="price")), "at least one value"),
    ):
        with pytest.raises(RequestError, match=expected):
            found.select(message)
    found.close()


def test_a_snapshot_of_before_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE items (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, metadata TEXT)")
        connection.execute("""INSERT INTO items VALUES (0, 'a', '{"n": 1}')""")
    found, reader = Selections(path), MetadataReader(path)
    assert reader.items([0]) == {}
    assert reader.item_rows(["a"]).tolist() == []
    with pytest.raises(RequestError, match="build the gallery again"):
        found.select(parse_filter("n = 1"))
    found.close()
    reader.close()


def test_rows_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = write(tmp_path / "m.sqlite", [{"n": n} for n in range(10)])
    monkeypatch.setattr(selection, "_TEXT_ROWS", 3)
    assert found.select(parse_filter("n != 5 or n = 77")).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    found.close()


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = write(tmp_path / "m.sqlite", [{"n": n} for n in range(10)])
    monkeypatch.setattr(selection, "MAX_CACHED_BYTES", 3 * 80)
    for n in range(20, 60):
        assert len(found.select(parse_filter(f"n < {n}"))) == 10
    assert len(found._cache) == 3
    monkeypatch.setattr(selection, "MAX_CACHED_FILTERS", 2)
    for n in range(60, 70):
        assert len(found.select(parse_filter(f"n > {n}"))) == 0
    assert len(found._cache) == 2
    with pytest.raises(ValueError, match="read-only"):
        found.select(parse_filter("n < 20"))[0] = 3
    found.close()

"""A filter message to a condition in SQL with bound parameters.

A condition on a missing value is false, and `negated` is true exactly where its filter is not. SQL's third truth value
never comes up: a negation is moved inwards to the single conditions, and a negated one is `column IS NULL OR NOT ...`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asymcir_common.places.rules import to_nfc
from asymcir_protos.v1 import retrieval_pb2

from asymcir_server.errors import RequestError
from asymcir_server.gallery.filters.columns import Column, Columns, encode_scalar

_Filter = retrieval_pb2.Filter
_Comparison = retrieval_pb2.Comparison

_SQL_OPERATORS = {
    _Comparison.EQUAL: "=",
    _Comparison.NOT_EQUAL: "=",  # negated
    _Comparison.LESS: "<",
    _Comparison.LESS_OR_EQUAL: "<=",
    _Comparison.GREATER: ">",
    _Comparison.GREATER_OR_EQUAL: ">=",
}
_TAKES = {
    "integer": ("integer", "real"),
    "real": ("integer", "real"),
    "text": ("text",),
    "boolean": ("boolean",),
    "mixed": ("integer", "real", "text", "boolean"),
}
_EXPECTED = {"integer": "a number", "real": "a number", "text": "a text", "boolean": "true or false"}
_STORED_AS = {"text": "('text')", "integer": "('integer', 'real')", "real": "('integer', 'real')"}
_NEVER = "0"  # of a stored column that cannot hold the value
_SURROGATES = range(0xD800, 0xE000)
_SHOWN = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterLimits:
    """What a filter may hold at most.

    Attributes:
        max_conditions: comparisons, memberships, prefixes and existences in all.
        max_values: values in all of them.
        max_depth: filters inside each other, the outermost included.
    """

    max_conditions: int = 64
    max_values: int = 10_000
    max_depth: int = 16


FILTER_LIMITS = FilterLimits()


def translate(message: retrieval_pb2.Filter, columns: Columns, stored: Columns | None = None) -> tuple[str, list[Any]]:
    """Turn a filter into a condition on the table `fields`, and its parameters.

    Args:
        message: the filter.
        columns: what can be filtered by, which the filter is checked against.
        stored: the columns that the table has, where these are others: fewer, or of narrower types.

    Raises:
        RequestError: it is larger than FILTER_LIMITS, incomplete, names a key that has no column, or compares with a
            value of another type.
    """
    translator = _Translator(columns, columns if stored is None else stored)
    return translator.translate(message, negated=False, depth=1), translator.parameters


class _Translator:
    def __init__(self, columns: Columns, stored: Columns) -> None:
        self.parameters: list[Any] = []
        self._columns, self._stored = columns, stored
        self._values = 0
        self._conditions = 0

    def translate(self, message: retrieval_pb2.Filter, *, negated: bool, depth: int) -> str:
        if depth > FILTER_LIMITS.max_depth:
            raise RequestError(f"expected a filter of at most {FILTER_LIMITS.max_depth} filters inside each other")
        kind = message.WhichOneof("condition")
        if kind is None:
            raise RequestError("a filter says nothing: expected a comparison or another condition in it")
        if kind == "negated":
            return self.translate(message.negated, negated=not negated, depth=depth + 1)
        if kind in ("all_of", "any_of"):
            parts = message.all_of.filters if kind == "all_of" else message.any_of.filters
            if not parts:
                raise RequestError(f"expected at least one filter in {kind}")
            word = " AND " if (kind == "all_of") != negated else " OR "
            return f"({word.join(self.translate(part, negated=negated, depth=depth + 1) for part in parts)})"
        return self._condition(message, kind, negated=negated)

    def _condition(self, message: retrieval_pb2.Filter, kind: str, *, negated: bool) -> str:
        self._conditions += 1
        if self._conditions > FILTER_LIMITS.max_conditions:
            raise RequestError(f"expected a filter of at most {FILTER_LIMITS.max_conditions} conditions")
        checked = self._find(getattr(message, kind).key)
        column = self._stored.by_key.get(checked.key)
        name = "NULL" if column is None else f"m{column.position}"
        if kind == "existence":
            return f"{name} IS {'' if negated else 'NOT '}NULL"
        if kind == "comparison":
            negated ^= message.comparison.operator == _Comparison.NOT_EQUAL
            found = self._compare(message.comparison, checked, column, name)
        elif kind == "membership":
            found = self._one_of(message.membership, checked, column, name)
        else:
            found = self._starts(message.prefix, checked, column, name)
        return f"({name} IS NULL OR NOT ({found}))" if negated else f"({found})"

    def _find(self, key: str) -> Column:
        column = self._columns.by_key.get(key) or self._columns.by_key.get(to_nfc(key))
        if column is None:
            raise RequestError(f"cannot filter by {key[:_SHOWN]!r}: {self._columns.explain_missing(key)}")
        return column

    def _compare(self, comparison: retrieval_pb2.Comparison, checked: Column, column: Column | None, name: str) -> str:
        operator = _SQL_OPERATORS.get(comparison.operator)
        if operator is None:
            raise RequestError(f"the filter's comparison of {checked.key!r} has no operator that is known here")
        kind = self._check([comparison.value], checked)[0]
        if kind == "boolean" and operator != "=":
            raise RequestError(f"booleans have no order: expected = or != for {checked.key!r}")
        if column is None or not self._bind([comparison.value], column):
            return _NEVER
        if operator == "=":
            return f"{name} = ?"
        # In a mixed column a text stands above every number.
        guard = f"typeof({name}) IN {_STORED_AS[kind]} AND " if column.type == "mixed" else ""
        return f"{guard}{name} {operator} ?"

    def _one_of(self, membership: retrieval_pb2.Membership, checked: Column, column: Column | None, name: str) -> str:
        if not membership.values:
            raise RequestError(f"expected at least one value that {checked.key!r} may be in")
        self._check(membership.values, checked)
        bound = 0 if column is None else self._bind(membership.values, column)
        return f"{name} IN ({','.join('?' * bound)})" if bound else _NEVER

    def _starts(self, prefix: retrieval_pb2.Prefix, checked: Column, column: Column | None, name: str) -> str:
        if checked.type not in ("text", "mixed"):
            raise RequestError(f"expected a key of texts before prefix, {checked.key!r} is {checked.type}")
        self._count(1)
        if column is None or column.type not in ("text", "mixed"):
            return _NEVER
        if not prefix.prefix:
            return f"typeof({name}) = 'text'"
        start = to_nfc(prefix.prefix)
        self.parameters.append(start)
        end = _text_after(start)
        if end is None:
            return f"typeof({name}) = 'text' AND {name} >= ?"
        self.parameters.append(end)
        return f"{name} >= ? AND {name} < ?"

    def _check(self, values: Sequence[retrieval_pb2.Value], column: Column) -> list[str]:
        """Check values against a column's type, and return their types."""
        self._count(len(values))
        return [_check_value(value, column) for value in values]

    def _bind(self, values: Sequence[retrieval_pb2.Value], column: Column) -> int:
        """Add those values to the parameters that a stored column can hold; return how many."""
        held = [(value, str(value.WhichOneof("kind"))) for value in values]
        fitting = [getattr(value, kind) for value, kind in held if kind in _TAKES[column.type]]
        fitting = [to_nfc(value) if isinstance(value, str) else value for value in fitting]
        self.parameters += [encode_scalar(value, column.type) for value in fitting]
        return len(fitting)

    def _count(self, count: int) -> None:
        self._values += count
        if self._values > FILTER_LIMITS.max_values:
            raise RequestError(f"expected a filter of at most {FILTER_LIMITS.max_values} values")


def _check_value(value: retrieval_pb2.Value, column: Column) -> str:
    kind = value.WhichOneof("kind")
    if kind is None:
        raise RequestError(f"the filter compares {column.key!r} with no value")
    if kind == "real" and value.real != value.real:
        raise RequestError(f"the filter compares {column.key!r} with NaN, which nothing equals: use `exists`")
    if kind not in _TAKES[column.type]:
        came = repr(getattr(value, kind))
        came = came if len(came) <= _SHOWN else f"{came[:_SHOWN]}..."
        raise RequestError(
            f"expected {_EXPECTED[column.type]} for {column.key!r} ({column.type}), got the {kind} {came}"
        )
    return str(kind)


def _text_after(prefix: str) -> str | None:
    """Return the least text above all texts with a prefix; None where there is none."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    code = ord(kept[-1]) + 1
    return kept[:-1] + chr(_SURROGATES.stop if code in _SURROGATES else code)

"""Filters as text: `price < 20 and colour in ("red", "blue") and not exists sold` to the message `Filter`.

    filter     = conjunction, { "or", conjunction }
    conjunction = condition, { "and", condition }
    condition  = "not", condition | "(", filter, ")" | "exists", key | key, test
    test       = ( "=" | "!=" | "<" | "<=" | ">" | ">=" ), value
               | [ "not" ], "in", "(", value, { ",", value }, ")"
               | "prefix", text
    key        = a word of letters, digits, "_", "-" and ".", or any text in backquotes
    value      = text in single or double quotes | number | "true" | "false"

Words of the grammar may be written in capitals. In quotes a backslash stands before a quote or a backslash that belongs
to the text. What each condition means is said in `v1/retrieval.proto`.
"""

import re
from typing import NamedTuple, NoReturn

from asymcir_common import FilterTextError

from asymcir_protos.v1 import retrieval_pb2

MAX_NESTING = 32
"""Brackets and `not` inside each other. A server's own limit, in Describe, may be lower."""

_OPERATORS = {
    "=": retrieval_pb2.Comparison.EQUAL,
    "==": retrieval_pb2.Comparison.EQUAL,
    "!=": retrieval_pb2.Comparison.NOT_EQUAL,
    "<": retrieval_pb2.Comparison.LESS,
    "<=": retrieval_pb2.Comparison.LESS_OR_EQUAL,
    ">": retrieval_pb2.Comparison.GREATER,
    ">=": retrieval_pb2.Comparison.GREATER_OR_EQUAL,
}
_RESERVED = frozenset({"and", "or", "not", "in", "prefix", "exists", "true", "false"})
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<quoted>`(?:[^`\\]|\\.)+`)
    |(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<word>[^\W\d][\w.-]*)
    |(?P<symbol>==|!=|<=|>=|[=<>(),])
    |(?P<end>$)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_WHOLE = re.compile(r"[+-]?\d+")
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1
_SHOWN = 100
_VALUE = "a value: a text in quotes, a number, true or false"


class _Token(NamedTuple):
    kind: str
    text: str
    place: int


def parse_filter(text: str) -> retrieval_pb2.Filter:
    """Parse the text of a filter.

    Args:
        text: one filter, in the grammar above.

    Raises:
        FilterTextError: it does not follow the grammar; the message names the column and says what was expected there.
    """
    return _Parser(text).parse()


class _Parser:
    """Recursive descent over the tokens; `_token` is the next one."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._depth = 0
        self._token = self._read()

    def parse(self) -> retrieval_pb2.Filter:
        found = self._disjunction()
        if self._token.kind != "end":
            self._fail("`and`, `or` or the end")
        return found

    def _disjunction(self) -> retrieval_pb2.Filter:
        parts = [self._conjunction()]
        while self._take("or"):
            parts.append(self._conjunction())
        return parts[0] if len(parts) == 1 else retrieval_pb2.Filter(any_of=retrieval_pb2.FilterList(filters=parts))

    def _conjunction(self) -> retrieval_pb2.Filter:
        parts = [self._condition()]
        while self._take("and"):
            parts.append(self._condition())
        return parts[0] if len(parts) == 1 else retrieval_pb2.Filter(all_of=retrieval_pb2.FilterList(filters=parts))

    def _condition(self) -> retrieval_pb2.Filter:
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"at most {MAX_NESTING} brackets and `not` inside each other")
        try:
            if self._take("not"):
                return retrieval_pb2.Filter(negated=self._condition())
            if self._take("("):
                found = self._disjunction()
                self._require(")", "`and`, `or` or `)`")
                return found
            if self._take("exists"):
                bracket = self._take("(")
                found = retrieval_pb2.Filter(existence=retrieval_pb2.Existence(key=self._key("a metadata key")))
                if bracket:
                    self._require(")", "`)`")
                return found
            return self._test(self._key("a metadata key, `not`, `exists` or `(`"))
        finally:
            self._depth -= 1

    def _test(self, key: str) -> retrieval_pb2.Filter:
        if self._token.kind == "symbol" and self._token.text in _OPERATORS:
            operator = _OPERATORS[self._next().text]
            comparison = retrieval_pb2.Comparison(key=key, operator=operator, value=self._value())
            return retrieval_pb2.Filter(comparison=comparison)
        if self._take("prefix"):
            if self._token.kind != "text":
                self._fail("a text in quotes")
            return retrieval_pb2.Filter(prefix=retrieval_pb2.Prefix(key=key, prefix=_unquote(self._next().text)))
        negated = self._take("not")
        if not self._take("in"):
            self._fail("`in`" if negated else "one of = != < <= > >= in prefix")
        self._require("(", "`(`")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._require(")", "`,` or `)`")
        found = retrieval_pb2.Filter(membership=retrieval_pb2.Membership(key=key, values=values))
        return retrieval_pb2.Filter(negated=found) if negated else found

    def _key(self, expected: str) -> str:
        kind, text, _ = self._token
        if kind == "text":
            expected += ", without quotes or in backquotes"
        if kind not in ("word", "quoted") or text.lower() in _RESERVED:
            self._fail(expected)
        self._next()
        return _unquote(text) if kind == "quoted" else text

    def _value(self) -> retrieval_pb2.Value:
        kind, text, place = self._token
        if kind == "text":
            value = retrieval_pb2.Value(text=_unquote(text))
        elif kind == "word" and text.lower() in ("true", "false"):
            value = retrieval_pb2.Value(boolean=text.lower() == "true")
        elif kind == "number" and _WHOLE.fullmatch(text):
            if len(text) > 20 or not _MIN_INT64 <= int(text) <= _MAX_INT64:
                self._fail(f"a whole number from {_MIN_INT64} to {_MAX_INT64}, or one with a decimal point", place)
            value = retrieval_pb2.Value(integer=int(text))
        elif kind == "number":
            value = retrieval_pb2.Value(real=float(text))
        else:
            self._fail(_VALUE)
        self._next()
        return value

    def _take(self, text: str) -> bool:
        kind = "word" if text.isalpha() else "symbol"
        if self._token.kind != kind or self._token.text.lower() != text:
            return False
        self._next()
        return True

    def _require(self, text: str, expected: str) -> None:
        if not self._take(text):
            self._fail(expected)

    def _next(self) -> _Token:
        token, self._token = self._token, self._read()
        return token

    def _read(self) -> _Token:
        match = _TOKEN.match(self._text, self._end)
        if match is None or match.lastgroup is None:
            place = len(self._text) - len(self._text[self._end :].lstrip())
            if self._text[place] in "\"'`":
                self._fail(f"a closing {self._text[place]}", place, found="a text without end")
            self._fail("a key, a value, an operator or a bracket", place, found=repr(self._text[place]))
        self._end = match.end()
        return _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))

    def _fail(self, expected: str, place: int | None = None, *, found: str | None = None) -> NoReturn:
        if place is None:
            place = self._token.place
        if found is None:
            found = "the end" if self._token.kind == "end" else repr(self._token.text[:_SHOWN])
        start = max(0, place - _SHOWN // 2)
        line = "".join(c if c.isprintable() else " " for c in self._text[start : start + _SHOWN])
        raise FilterTextError(
            f"the filter at column {place + 1}: expected {expected}, found {found}",
            pointed=f"  {line}\n  {' ' * (place - start)}^",
        )


def _unquote(text: str) -> str:
    return _ESCAPE.sub(r"\1", text[1:-1])

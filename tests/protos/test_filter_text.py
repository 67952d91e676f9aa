"""Filters as text."""

import pytest
from asymcir_common import FilterTextError
from asymcir_protos import parse_filter
from asymcir_protos.v1 import retrieval_pb2
from google.protobuf import text_format


def read(text: str) -> retrieval_pb2.Filter:
    return text_format.Parse(text, retrieval_pb2.Filter())


PRICE = 'comparison { key: "price" operator: LESS value { integer: 20 } }'
COLOUR = 'membership { key: "colour" values { text: "red" } values { text: "blue" } }'
SOLD = 'existence { key: "sold" }'

GOOD = {
    "price < 20": PRICE,
    "price<20": PRICE,
    "(((price < 20)))": PRICE,
    """colour in ("red", 'blue')""": COLOUR,
    "colour not in ('red', 'blue')": f"negated {{ {COLOUR} }}",
    "exists sold": SOLD,
    "EXISTS(sold)": SOLD,
    "not exists sold": f"negated {{ {SOLD} }}",
    "price < 20 and colour in ('red','blue') and not exists sold": (
        f"all_of {{ filters {{ {PRICE} }} filters {{ {COLOUR} }} filters {{ negated {{ {SOLD} }} }} }}"
    ),
    "exists sold or price < 20 and exists sold": (
        f"any_of {{ filters {{ {SOLD} }} filters {{ all_of {{ filters {{ {PRICE} }} filters {{ {SOLD} }} }} }} }}"
    ),
    "not (exists sold OR price < 20)": f"negated {{ any_of {{ filters {{ {SOLD} }} filters {{ {PRICE} }} }} }}",
    "n = -5": 'comparison { key: "n" operator: EQUAL value { integer: -5 } }',
    "n == 9007199254740993": 'comparison { key: "n" operator: EQUAL value { integer: 9007199254740993 } }',
    "n >= 1.5e3": 'comparison { key: "n" operator: GREATER_OR_EQUAL value { real: 1500 } }',
    "n != 5.0": 'comparison { key: "n" operator: NOT_EQUAL value { real: 5 } }',
    "b = TRUE": 'comparison { key: "b" operator: EQUAL value { boolean: true } }',
    "größe > 1": 'comparison { key: "größe" operator: GREATER value { integer: 1 } }',
    "shop.size-cm <= 1": 'comparison { key: "shop.size-cm" operator: LESS_OR_EQUAL value { integer: 1 } }',
    "`in` = 1": 'comparison { key: "in" operator: EQUAL value { integer: 1 } }',
    r"`a \` b` = 1": 'comparison { key: "a ` b" operator: EQUAL value { integer: 1 } }',
    r"""name prefix "a\"\\b'" """: r"""prefix { key: "name" prefix: "a\"\\b'" }""",
    """s = "'; DROP TABLE items; --" """: (
        """comparison { key: "s" operator: EQUAL value { text: "'; DROP TABLE items; --" } }"""
    ),
}


@pytest.mark.parametrize("text", GOOD)
def test_good_filters(text: str) -> None:
    assert parse_filter(text) == read(GOOD[text])


BAD = {
    "": (1, "a metadata key", "the end"),
    "price": (6, "one of = !=", "the end"),
    "price <": (8, "a value", "the end"),
    "price 20": (7, "one of = !=", "'20'"),
    "price < red": (9, "a text in quotes", "'red'"),
    "price < 20 and": (15, "a metadata key", "the end"),
    "price < 20 colour = 1": (12, "`and`, `or` or the end", "'colour'"),
    '"price" < 2': (1, "without quotes or in backquotes", "price"),
    "in = 2": (1, "a metadata key", "'in'"),
    'colour in "red"': (11, "`(`", "red"),
    "colour in ()": (12, "a value", "')'"),
    "colour in (1 2)": (14, "`,` or `)`", "'2'"),
    "colour not 3": (12, "`in`", "'3'"),
    "name prefix 3": (13, "a text in quotes", "'3'"),
    "(a = 1": (7, "`and`, `or` or `)`", "the end"),
    "a = 1)": (6, "or the end", "')'"),
    'a = "x': (5, "a closing", "a text without end"),
    "a ~ 1": (3, "an operator", "'~'"),
    "a = 20x": (5, "a key, a value", "'2'"),
    "a = 9223372036854775808": (5, "a whole number from", "'9223372036854775808'"),
    "not " * 40 + "a = 1": (129, "at most 32", "'not'"),
    "(" * 5000: (33, "at most 32", "'('"),
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_errors_point_at_the_place(text: str) -> None:
    column, expected, found = BAD[text]
    with pytest.raises(FilterTextError) as caught:
        parse_filter(text)
    message = str(caught.value)
    assert message.startswith(f"the filter at column {column}: expected ")
    assert expected in message
    assert found in message.rpartition("found")[2]
    line, caret = caught.value.pointed.split("\n")
    assert caret.strip() == "^"
    if len(text) < 50:
        assert line == f"  {text}"
        assert caret.index("^") == 2 + column - 1
    elif column <= len(text):
        assert line[caret.index("^")] == text[column - 1]

"""Shares and byte counts on the command line."""

import argparse

import pytest
from asymcir_common.arguments import byte_count, share


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("17", 17), ("3K", 3072), ("500M", 500 << 20), ("2G", 2 << 30)])
def test_byte_counts(text: str, value: int) -> None:
    assert byte_count(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "2g", "2GB", "much"])
def test_no_byte_counts(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected bytes such as 500M or 2G"):
        byte_count(text)


def test_shares() -> None:
    assert share("1") == 1.0
    assert share("0.25") == 0.25
    for text in ("0", "-0.1", "1.01", "nan", "all"):
        with pytest.raises(argparse.ArgumentTypeError, match="above 0 and at most 1"):
            share(text)

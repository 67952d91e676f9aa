"""Lists on pages and in help texts are those of the code."""

import argparse
import re
from pathlib import Path

from asymcir_common.places import PICTURE_SUFFIXES
from asymcir_edge.cli import build_parser

ROOT = Path(__file__).parents[2]


def _summaries(parser: argparse.ArgumentParser) -> dict[str, str | None]:
    (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {choice.dest: choice.help for choice in group._choices_actions}


def test_the_page_lists_the_suffixes_of_pictures() -> None:
    page = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"files with these suffixes are taken: ([^\n]*?`)\. ", page)
    assert listed == ", ".join(f"`{suffix}`" for suffix in sorted(PICTURE_SUFFIXES))


def test_summaries_are_those_of_the_commands() -> None:
    assert _summaries(build_parser([])) == _summaries(build_parser())

"""The commands that stand on a Markdown page, in a Makefile and in shell scripts, as words."""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHELLS = ("sh", "bash", "console", "")
"""Languages of the fenced blocks that may hold commands; a block without a language may also hold something else."""

_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
_SPAN = re.compile(r"(?<!`)`((?:[^`\n]|\n(?!\n))+)`(?!`)")
_ENDS = re.compile(r"[;&|()]+")
_REDIRECTION = re.compile(r"[&<>|]*[<>][&<>|]*")
_KEYWORDS = frozenset(
    ("if", "then", "elif", "else", "while", "until", "do", "!", "{", "}", "time", "exec", "fi", "done")
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a page.

    Attributes:
        line: where it stands, from 1.
        words: the program and its arguments.
        whole: False for one that is mentioned in a sentence, where arguments may be left out.
    """

    line: int
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"line {self.line}: {shlex.join(self.words)}"


def load_page_runner() -> Any:
    """Import scripts/run-page, which has no suffix."""
    loader = SourceFileLoader("run_page", str(ROOT / "scripts" / "run-page"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def find_commands(page: str) -> Iterator[Command]:
    """Yield the commands of the fenced blocks and of the code spans of a page."""
    lines = page.splitlines()
    for block in load_page_runner().read_blocks(page):
        text = block.text.splitlines()
        for place in range(block.line - 2, block.line + len(text)):
            lines[place] = ""  # so that the spans below keep their lines
        if block.language not in SHELLS:
            continue
        if block.language == "console":
            text = [line.removeprefix("$ ") if line.startswith("$ ") else "" for line in text]
        for number, words in split_shell(text, strict=bool(block.language)):
            yield Command(line=block.line + number, words=words, whole=True)
    prose = "\n".join(lines)
    for span in _SPAN.finditer(prose):
        for _, words in split_shell(span[1].split("\n"), strict=False, joined=True):
            yield Command(line=prose.count("\n", 0, span.start()) + 1, words=words, whole=False)


def split_shell(lines: Iterable[str], *, strict: bool, joined: bool = False) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the place of each command among the lines, from 0, and its words, without redirections and assignments.

    Args:
        lines: of a script.
        strict: raise on what is not shell; else pass over it.
        joined: the lines are one.

    Raises:
        ValueError: a quotation is not closed.
    """
    lines = [" ".join(lines)] if joined else list(lines)
    place = 0
    while place < len(lines):
        start, text = place, ""
        while True:
            text += lines[place]
            place += 1
            continued = text.endswith("\\")
            text = text.removesuffix("\\") if continued else text
            try:
                tokens = _read_tokens(text)
                if not continued or place == len(lines):
                    break
            except ValueError:
                text += "" if continued else "\n"
                if place == len(lines):
                    if strict:
                        raise
                    tokens = []
                    break
        yield from ((start, words) for words in _split_tokens(tokens))
        heredoc = _HEREDOC.search(text)
        if heredoc is not None:
            while place < len(lines) and lines[place].strip() != heredoc[1]:
                place += 1
            place += 1


def _read_tokens(text: str) -> list[str]:
    # 2>FILE is one redirection; split off, the 2 would look like an argument.
    reader = shlex.shlex(re.sub(r"(?<=\s)\d(?=[<>])", "", text), posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    return list(reader)


def _split_tokens(tokens: Iterable[str]) -> Iterator[tuple[str, ...]]:
    words: list[str] = []
    redirected = False
    for token in [*tokens, ";"]:
        if redirected:
            redirected = False
        elif _REDIRECTION.fullmatch(token):
            redirected = True
        elif _ENDS.fullmatch(token):
            if words:
                yield tuple(words)
            words = []
        elif words or not (token in _KEYWORDS or re.fullmatch(r"\w+=.*", token)):
            words.append(token)

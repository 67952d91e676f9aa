"""The page of all commands, from the parsers that read them."""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asymcir_edge.cli import build_parser

_DEFAULT = re.compile(r"\s*\(default: (?P<value>[^()]*)\)$")
_EVERYWHERE = ("--help", "--verbose")
"""Options that every command has: the text of the page names them once."""


@dataclass(frozen=True, kw_only=True)
class _Command:
    """A command that runs: its parser, and what the list of commands says of it."""

    parser: argparse.ArgumentParser
    summary: str


def lay_out_commands() -> str:
    """Lay out a table of all commands, then a section with a table of the arguments for each."""
    commands = list(_find_commands(build_parser(), ""))
    rows = [("command", "what it does")]
    rows += [(f"[`{it.parser.prog}`](#{it.parser.prog.replace(' ', '-')})", it.summary) for it in commands]
    return "\n\n".join([_make_table(rows), *(_lay_out(command) for command in commands)])


def _find_commands(parser: argparse.ArgumentParser, summary: str) -> Iterator[_Command]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield _Command(parser=parser, summary=summary)
    for group in groups:
        summaries = {choice.dest: choice.help or "" for choice in group._choices_actions}
        for name in sorted(group.choices):
            yield from _find_commands(group.choices[name], summaries.get(name, ""))


def _lay_out(command: _Command) -> str:
    parser = command.parser
    summary = f"{command.summary[:1].upper()}{command.summary[1:]}."
    rows = [("argument", "meaning", "default")]
    exclusive = {action: group for group in parser._mutually_exclusive_groups for action in group._group_actions}
    for action in parser._actions:
        if not set(action.option_strings) & set(_EVERYWHERE):
            alternative = action in exclusive and exclusive[action].required
            rows.append((_spell(action), *_explain(action, alternative=alternative)))
    return f"## {parser.prog}\n\n{parser.description or summary}\n\n{_make_table(rows)}"


def _spell(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        return f"`{value}`"
    return f"`{action.option_strings[-1]}{'' if action.nargs == 0 else f' {value}'}`"


def _explain(action: argparse.Action, *, alternative: bool) -> tuple[str, str]:
    """Return the meaning and the default."""
    meaning = (action.help or "") % {**vars(action)}
    written = _DEFAULT.search(meaning)
    meaning = _DEFAULT.sub("", meaning)
    if action.choices is not None:
        meaning += f"{': ' if meaning else ''}{', '.join(map(str, action.choices))}"
    if alternative:
        return meaning, "one of these is required"
    if action.required and action.nargs != "*":
        return meaning, "required"
    if written is not None:
        return meaning, written["value"]
    without = action.nargs == 0 or action.default in (None, "", []) or action.default == argparse.SUPPRESS
    return meaning, "-" if without else str(action.default)


def _make_table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [rows[0], tuple("---" for _ in rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

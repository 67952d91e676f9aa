"""Every command on every page, in the Makefile and in the scripts is one that the programs take today."""

import argparse
import contextlib
import functools
import importlib
import io
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from asymcir_common import AsymcirError
from asymcir_common.places import PathReader
from asymcir_edge import cli
from asymcir_training.commands import read_config
from page_commands import ROOT, Command, find_commands, split_shell

PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "demo/*.md", "training/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it names what was
)
SCRIPTS = (
    "scripts/bench",
    "scripts/bench-arm",
    "scripts/coreml-selftest",
    "scripts/device-install-check",
    "scripts/proto-check",
    ".ci/run",
)
PYTHON = re.compile(r"python(3(\.\d+)?)?")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|\.\.\.|…")
"""What stands for an argument in a sentence, where the type of the option would refuse it."""
OTHERS = frozenset(("--local-dir",))
"""Options of other programs that a sentence names."""
CARRIED = ("demo/assets", "demo/training")
"""Folders of the repository: what a command reads below them must be there."""


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    wrong = [f"{command}: {why}" for command in find_commands(text) if (why := find_fault(command))]
    assert not wrong, "\n".join(["", *wrong])


def test_commands_are_found_on_pages() -> None:
    assert sum(len(list(find_commands((ROOT / page).read_text(encoding="utf-8")))) for page in PAGES) >= 500


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str) -> None:
    _check_lines((ROOT / name).read_text(encoding="utf-8").splitlines())


def test_makefile() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    # $(DEV)/bin/python is a program; its parentheses are none of the shell's.
    recipes = [re.sub(r"\$\((\w+)\)", r"\1", line) if line.startswith("\t") else "" for line in lines]
    _check_lines(recipes)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("asymcir gallery build P --server S --out G", "did you mean --server-bundle?"),
        ("asymcir --version && .venv/bin/asymcir serve --server-bundle S", "required: --gallery"),
        ("asymcir gallery info --gallery G > a.txt 2>&1 || asymcir gallry", "did you mean gallery?"),
        ("for i in 1 2; do X=1 python3 -m asymcir_edge describe; done", "required: --server"),
        (
            "torchrun --nproc-per-node 4 -m asymcir_edge train distil P --out o --foundation f --set run.seeed=1",
            "seeed",
        ),
        ("asymcir train union t --out o --foundation f --light l --set run.chunks=0", "run.chunks from 1"),
        ("asymcir train union t --out o --foundation f", "triplets.light (--light) is missing"),
        ("asymcir train distil --config demo/training/nothing.toml", "is not in the repository"),
        ("asymcir encode demo/assets/queries.zip/no.webp --device-bundle D", "is not in the repository"),
        ("make nothing", "no target nothing"),
        ("make test NOTHING=1", "no variable NOTHING"),
        ("python -m asymcir_benchmarks.nothing", "no module"),
        ("python -m asymcir_benchmarks.device.timing --models M", "required: --out"),
        ("`--server-bundle S` and `--bundle B`", "the option --bundle"),
        ("pip install '.[nothing]'", "no extra nothing"),
        ("scripts/nothing", "no file"),
    ],
)
def test_faults_are_found(line: str, fault: str) -> None:
    """Also that the rest of the line is read: each has one wrong command."""
    page = line if line.startswith("`") else f"```sh\n{line}\n```\n"
    (found,) = [why for command in find_commands(page) if (why := find_fault(command))]
    assert fault in found


@pytest.mark.parametrize(
    "page",
    [
        "`asymcir selftest`, `asymcir train distil ...`, `asymcir serve --port PORT`, `asymcir eval triplets --cache`",
        "`make bench-arm BUNDLE=...` and `--device-bundle BUNDLE --threads N`",
        '```\nasymcir query --image a.jpg --text "is\nblue" \\\n  --server h:1 --device-bundle D # note\n```',
        "```console\n$ asymcir --version\nasymcir 0.1 (nothing)\n```",
        "```sh\npython - <<'PY'\nasymcir nothing\nPY\nasymcir --help\n```",
        "```python\nasymcir nothing\n```",
        "```\na drawing's line\n```",
        "```sh\nasymcir train distil --print-config > run.toml\nasymcir train distil --config run.toml\n```",
    ],
)
def test_right_commands_pass(page: str) -> None:
    assert not [why for command in find_commands(page) if (why := find_fault(command))]


def _check_lines(lines: Sequence[str]) -> None:
    found = [Command(line=place + 1, words=words, whole=True) for place, words in split_shell(lines, strict=True)]
    wrong = [f"{command}: {why}" for command in found if (why := find_fault(command))]
    assert not wrong, "\n".join(["", *wrong])
    assert found


def find_fault(command: Command) -> str | None:
    """Return why a command would be refused; None if it would not, or if it is not one of ours."""
    program, words = PurePosixPath(command.words[0]).name, list(command.words[1:])
    if command.words[0].startswith("--"):
        unknown = [name for word in command.words if (name := word.partition("=")[0]) not in _known_options()]
        return next((f"no command has the option {name}" for name in unknown if name.startswith("--")), None)
    if program == "asymcir":
        return _check_asymcir(words, whole=command.whole)
    if program == "torchrun" or PYTHON.fullmatch(program.lstrip("$")):
        if "-m" not in words[:-1]:
            return None
        module, *rest = words[words.index("-m") + 1 :]
        if module == "asymcir_edge":
            return _check_asymcir(rest, whole=command.whole)
        return _check_module(module, rest, whole=command.whole) if module.startswith("asymcir_") else None
    if program == "make":
        return _check_make(words)
    if program == "pip":
        return _check_extras(words)
    if command.words[0].startswith(("scripts/", ".ci/")) and not (ROOT / command.words[0]).is_file():
        return f"no file {command.words[0]}"
    return None


def _check_asymcir(words: list[str], *, whole: bool) -> str | None:
    args = _parse(_asymcir_parser(whole), words, whole=whole)
    if not isinstance(args, argparse.Namespace):
        return args
    return (_find_absent(words) if whole else None) or _check_config(args, whole=whole)


def _check_config(args: argparse.Namespace, *, whole: bool) -> str | None:
    """Read the configuration of `asymcir train`, its keys and values, without running it."""
    if not hasattr(args, "overrides") or args.print_config or not (whole or args.overrides):
        return None
    file_is_made = args.config is not None and not (ROOT / args.config).is_file()  # by --print-config
    args.config = None if args.config is None or file_is_made else ROOT / args.config
    try:
        read_config(args)
    except AsymcirError as exc:
        if "is missing" not in str(exc) or (whole and not file_is_made):
            return str(exc)
    return None


def _check_module(name: str, words: list[str], *, whole: bool) -> str | None:
    try:
        package = importlib.import_module(name)
        module = importlib.import_module(f"{name}.__main__") if hasattr(package, "__path__") else package
    except ModuleNotFoundError as exc:
        return f"no module {exc.name}"
    if not hasattr(module, "build_parser"):
        return f"{module.__name__} has no build_parser() to check the words with"
    parser: argparse.ArgumentParser = module.build_parser()
    args = _parse(parser if whole else _relax(parser), words, whole=whole)
    return None if isinstance(args, argparse.Namespace) else args


def _check_make(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, sign, _ = word.partition("=")
        if sign and f"$({name})" not in makefile:
            return f"no variable {name} in the Makefile"
        if not sign and not word.startswith("-") and not re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE):
            return f"no target {word} in the Makefile"
    return None


def _check_extras(words: Iterable[str]) -> str | None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        found = re.fullmatch(r"(?:\.|asymcir)\[([\w,-]+)\]", word)
        for extra in found[1].split(",") if found else ():
            if extra not in known:
                return f"no extra {extra}"
    return None


def _find_absent(words: Iterable[str]) -> str | None:
    for word in words:
        path = word.removeprefix("$root/")
        # A path may lead into an archive.
        if path.startswith(CARRIED) and not (ROOT / path).exists() and PathReader().size(ROOT / path) < 0:
            return f"{path} is not in the repository"
    return None


def _parse(parser: argparse.ArgumentParser, words: list[str], *, whole: bool) -> argparse.Namespace | str | None:
    """Return the arguments; why they are refused; or None where the words only print, as --help does."""
    if not whole:
        words = [word for word in words if word not in ("...", "…")]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return parser.parse_args(words)
    except SystemExit as exc:
        return printed.getvalue().strip() if exc.code else None


@functools.cache
def _asymcir_parser(whole: bool) -> argparse.ArgumentParser:
    return cli.build_parser() if whole else _relax(cli.build_parser())


@functools.cache
def _known_options() -> frozenset[str]:
    return OTHERS.union(*(parser._option_string_actions for parser in _walk(_asymcir_parser(True))))


def _walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _walk(child)


def _relax(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let every argument be left out and a placeholder stand for it; a wrong word is still refused."""
    for action in parser._actions:
        action.required = False
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _relax(child)
            continue
        if action.nargs != 0:  # a switch takes no value
            action.nargs = "*" if action.nargs in ("+", "*") else "?"
        if action.type is not None:
            action.type = functools.partial(_read_or_keep, action.type)
    for group in parser._mutually_exclusive_groups:
        group.required = False
    return parser


def _read_or_keep(read: Any, text: str) -> Any:
    return text if PLACEHOLDER.fullmatch(text) else read(text)

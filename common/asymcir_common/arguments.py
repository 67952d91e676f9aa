"""The words of the command line that mean the same in every command, and how a wrong one is refused.

`--server-bundle`, `--device-bundle`, `--server` and `--gallery` are added by the functions here, so that each has one
spelling and one meaning. Numbers have a range, in the configurations of the packages too: an unlimited number of
threads takes the memory of the machine before anything else is noticed.
"""

import argparse
import contextlib
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

MAX_THREADS = 256
"""Threads or processes of one kind: as many as a large machine has cores; more are slower, and each takes memory."""

MAX_BATCH_SIZE = 1024
"""Pictures in one run of an encoder: their pixels alone take 0.6 GB at a side of 224."""

MAX_TEXT_BATCH = 64
"""Prompts in one run of a text encoder: bounds the memory of a run, whatever a caller hands in."""

MAX_TOP_K = 100_000
"""Hits of one answer: what fits a gRPC message of 4 MB."""

MAX_IN_FLIGHT = 4096
"""Requests that one server computes or keeps waiting: each holds a thread."""

MAX_REPEATS = 100_000
"""Timed runs of one model: enough for any percentile."""

MAX_SIDE = 4096
"""Pixels along a side of a square that an encoder sees."""

MAX_PORT = 65_535
MAX_TIMEOUT_S = 3600.0

_OPTION = re.compile(r"--?[A-Za-z][\w-]*")
_LEAST_LIKENESS = 0.65
_EQUAL_LIKENESS = 0.02


class ArgumentParser(argparse.ArgumentParser):
    """A parser that takes options by their whole name, and refuses a wrong word in one line with the nearest right one.

    argparse would take `--server` for `--server-bundle` where a command has no `--server` of its own, and complains of
    a missing option before it complains of the misspelt one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._commands: Any = None

    def add_subparsers(self, **kwargs: Any) -> Any:
        """Add subcommands; see argparse."""
        self._commands = super().add_subparsers(**kwargs)
        return self._commands

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, after a look at the words that this parser does not know; see argparse."""
        words = sys.argv[1:] if args is None else list(args)
        self.refuse_unknown(words)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Exit if one of the words is an option or a subcommand that this parser does not have."""
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if not _OPTION.fullmatch(name):
                if self._commands is not None:  # the words after it are the subcommand's
                    if word not in self._commands.choices:
                        self.error(f"no command {word!r}: {_suggest(word, self._commands.choices)}")
                    return
                continue
            if name in known or (not name.startswith("--") and name[:2] in known):
                continue
            self.error(f"no option {name}: {_suggest(name, (option for option in known if option.startswith('--')))}")


def _suggest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    found = find_nearest(word, known)
    return f"did you mean {' or '.join(found)}?" if found else f"expected one of {', '.join(sorted(known))}"


def find_nearest(word: str, known: Iterable[str]) -> list[str]:
    """Return the one or two of the known words that are most like `word`, in their order; none where all are far.

    A part of a known word counts as the word: `--bundle` is near to `--server-bundle` and `--device-bundle` alike.
    """
    plain = word.strip("-")
    likeness = {name: max(_liken(plain, part) for part in _spell(name.strip("-"))) for name in known}
    best = max(likeness.values(), default=0.0)
    if best < _LEAST_LIKENESS:
        return []
    return [name for name, value in likeness.items() if value >= best - _EQUAL_LIKENESS][:2]


def _spell(name: str) -> list[str]:
    return [name, *(part for part in name.split("-") if len(part) > 3)]


def _liken(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return the `type` of an option that takes a whole number from `least` to `most`."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= (number := int(text)) <= most:
                return number
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text}")

    return read


def seconds(least: float, most: float) -> Callable[[str], float]:
    """Return the `type` of an option that takes a time from `least` to `most` seconds."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= (number := float(text)) <= most:
                return number
        raise argparse.ArgumentTypeError(f"expected {least:g} to {most:g} seconds, got {text}")

    return read


def share(text: str) -> float:
    """Read a share of a whole, above 0 and at most 1: the `type` of an option."""
    with contextlib.suppress(ValueError):
        if 0.0 < (number := float(text)) <= 1.0:
            return number
    raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, got {text}")


def byte_count(text: str) -> int:
    """Read a number of bytes, with K, M, G or T for powers of 1024: the `type` of an option."""
    found = re.fullmatch(r"(\d{1,18})([KMGT]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected bytes such as 500M or 2G, got {text}")
    return int(found[1]) << (10 * " KMGT".index(found[2] or " "))


def path_name(text: str) -> Path:
    """Read a path: the `type` of an option. An empty text, as of a variable that is not set, is not the folder here."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def add_server_bundle(
    parser: argparse.ArgumentParser, *, required: bool = True, help: str = "the server bundle"
) -> None:
    """Add `--server-bundle FOLDER`, a Path or None in `server_bundle`."""
    parser.add_argument("--server-bundle", type=path_name, required=required, metavar="FOLDER", help=help)


def add_device_bundle(parser: Any, *, required: bool = True, help: str = "the device bundle") -> None:
    """Add `--device-bundle FOLDER`, a Path or None in `device_bundle`."""
    parser.add_argument("--device-bundle", type=path_name, required=required, metavar="FOLDER", help=help)


def add_server(parser: argparse.ArgumentParser, *, timeout_s: float) -> None:
    """Add `--server HOST:PORT`, `--timeout SECONDS`, and the options of a key and of TLS."""
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="the retrieval server's address")
    parser.add_argument(
        "--timeout",
        type=seconds(0.001, MAX_TIMEOUT_S),
        default=timeout_s,
        metavar="SECONDS",
        help=f"how long to wait for an answer (default: {timeout_s:g})",
    )
    parser.add_argument(
        "--key-file", type=path_name, metavar="FILE", help="a file with the key that the server asks for"
    )
    parser.add_argument("--tls", action="store_true", help="encrypt, and check the server's certificate")
    parser.add_argument("--tls-ca", type=path_name, metavar="FILE", help="trust certificates that these signed, PEM")
    parser.add_argument(
        "--tls-client",
        type=path_name,
        nargs=2,
        metavar=("CERTIFICATE", "KEY"),
        help="this client's certificate and private key, PEM, where the server asks for them",
    )


def add_gallery_folder(parser: argparse.ArgumentParser, *, help: str = "the gallery's folder") -> None:
    """Add `--gallery FOLDER`, a Path in `gallery`."""
    parser.add_argument("--gallery", type=path_name, required=True, metavar="FOLDER", help=help)


def add_threads(parser: argparse.ArgumentParser, *, least: int, default: int, help: str) -> None:
    """Add `--threads N`, from `least` (0 where the runtime may choose) to MAX_THREADS."""
    parser.add_argument("--threads", type=whole_number(least, MAX_THREADS), default=default, metavar="N", help=help)

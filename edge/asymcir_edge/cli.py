# PYTHON_ARGCOMPLETE_OK
"""The `asymcir` command: finds the subcommands, runs one, and turns every failure into one line and an exit code.

A package adds a subcommand with an entry point of the group `asymcir.commands`: the name of the command and a function
`register_NAME(subparsers)`, which adds a parser of that name whose defaults hold `run`, a handler from the parsed
arguments to the exit code. It may also set the default `log_level` (a `logging` level), where progress is worth seeing
without `-v`. Only the module of the subcommand that was asked for is imported, and none for the command's own help: so
that is quick, and does not depend on which extras are installed.

Exit codes: 0 done, 1 an error, 2 a wrong command line, 130 interrupted, 141 the reader of the output went away.
"""

import argparse
import functools
import importlib
import importlib.metadata
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from asymcir_common import AsymcirError, FilterTextError
from asymcir_common.arguments import ArgumentParser
from asymcir_common.installation import how_to_install

_DISTRIBUTION = "asymcir"
_GROUP = "asymcir.commands"
_REGISTER_PREFIX = "register_"
_Register = Callable[[Any], None]
_SUMMARIES = {
    "demo": "build the demo's gallery, serve it, and run composed queries and sketches",
    "describe": "print what a server holds: spaces, galleries, limits",
    "encode": "turn pictures into sentence tokens, on this device",
    "bench-server": "measure a running server under load",
    "eval": "measure retrieval accuracy on a dataset",
    "explain": "write a page that says why a query is answered as it is",
    "export": "write a device or a server bundle from trained models",
    "gallery": "build, change and check a gallery, and keep its snapshots",
    "keys": "make, list and revoke the keys that callers of a server send",
    "query": "search a server by a picture and a typed change",
    "selftest": "compare a device bundle with its golden tokens on this machine, and time it",
    "serve": "answer composed queries over gRPC",
    "train": "train a foundation, the light encoder or the UNION head",
}
_PACKAGES = (
    "asymcir_benchmarks",
    "asymcir_common",
    "asymcir_demo",
    "asymcir_edge",
    "asymcir_export",
    "asymcir_protos",
    "asymcir_server",
    "asymcir_training",
)
_EXIT_ERROR, _EXIT_USAGE, _EXIT_INTERRUPTED, _EXIT_BROKEN_PIPE = 1, 2, 130, 141

_COMPLETION = "_ARGCOMPLETE"
"""Set by the shell, in the environment, when it asks for completions: argcomplete's protocol."""

_EXTRA_OF_MODULE = {
    "braceexpand": "server",
    "connectrpc": "server",
    "faiss": "server",
    "ftfy": "server",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "prometheus_client": "server",
    "starlette": "server",
    "tokenizers": "server",
    "uvicorn": "server",
    "matplotlib": "training",
    "open_clip": "training",
    "pydantic": "training",
    "safetensors": "training",
    "tensorboard": "training",
    "timm": "training",
    "torch": "training",
    "torchvision": "training",
    "transformers": "training",
    "coremltools": "export",
    "onnx": "export",
    "onnxscript": "export",
    "sklearn": "export",
    "resvg_py": "demo-assets",
}

_EXTRA_OF_COMMAND = {"export": "export"}
"""Commands whose extra includes those of all modules that they need."""


class _Parser(ArgumentParser):
    """A parser that takes `-v` at every level, so that it may stand before or after the subcommand."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("conflict_handler", "resolve")
        super().__init__(*args, **kwargs)
        self.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="log what happens, and print the traceback of an unexpected error",
        )

    def error(self, message: str) -> NoReturn:
        """Print one line, with the prefix of every error of this command, and exit with code 2."""
        _print_error(f"{message}; see {self.prog} --help")
        self.exit(_EXIT_USAGE)


class _CompletingParser(_Parser):
    """A parser that goes on after a wrong word: the line that the shell asks about is not finished."""

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Refuse nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `asymcir` command.

    Args:
        argv: the arguments after the command's name; None for those of the process.

    Returns:
        The exit code; see the module's docstring.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be valid in the terminal's encoding
    try:
        code = _run(words)
        sys.stdout.flush()  # so that a reader that went away is noticed here, not at the interpreter's exit
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return _EXIT_BROKEN_PIPE


def _run(words: Sequence[str]) -> int:
    verbose = "-v" in words or "--verbose" in words  # known before parsing: loading a subcommand may fail too
    try:
        if _COMPLETION in os.environ:
            _complete()
        parser = build_parser(words)
        args = parser.parse_args(words)
        verbose = getattr(args, "verbose", False)
        if not hasattr(args, "run"):
            parser.error("a command is missing")
        _configure_logging(logging.DEBUG if verbose else getattr(args, "log_level", logging.WARNING))
        return int(args.run(args))
    except SystemExit as exc:  # argparse: --help, --version, a wrong command line
        return exc.code if isinstance(exc.code, int) else _EXIT_USAGE if exc.code else 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        _print_error("interrupted")
        return _EXIT_INTERRUPTED
    except FilterTextError as exc:
        _print_error(str(exc))
        print(exc.pointed, file=sys.stderr)
    except AsymcirError as exc:
        _print_error(str(exc))
    except ModuleNotFoundError as exc:
        _print_error(_describe_missing_module(exc, _find_command(words)))
    except OSError as exc:
        _print_error(f"{exc.filename}: {exc.strerror}" if exc.filename and exc.strerror else str(exc))
        if verbose:
            traceback.print_exc()
    except Exception as exc:
        hint = "" if verbose else " (unexpected; run with -v for the traceback)"
        _print_error(f"{type(exc).__name__}: {exc}{hint}")
        if verbose:
            traceback.print_exc()
    return _EXIT_ERROR


def _complete() -> None:
    """Write what may follow on the command line that the shell is at, and exit."""
    import argcomplete

    words = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "0"))].split()
    argcomplete.autocomplete(_build_parser(words[1:], _CompletingParser))


def build_parser(words: Sequence[str] | None = None) -> ArgumentParser:
    """Build the parser of the command.

    Args:
        words: of a command line: only the subcommand that they ask for is imported and gets its options, and none where
            they name none; the others are known by name. None builds all of them, for the pages and their tests.

    Raises:
        AsymcirError: the subcommand is one that comes with an installation, and there is none.
    """
    return _build_parser(words, _Parser)


def _build_parser(words: Sequence[str] | None, kind: type[_Parser]) -> ArgumentParser:
    version, commands = _find_commands()
    parser = kind(
        prog="asymcir",
        description="Asymmetric composed image retrieval: search a gallery by a picture and a typed change.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version or '(not installed)'}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    asked = _find_command(words or ())
    if version is None and asked in _SUMMARIES and asked not in commands:
        raise AsymcirError(
            f"{_DISTRIBUTION} is not installed, only importable, and then has only {', '.join(sorted(commands))}: "
            f"pip install {_DISTRIBUTION}"
        )
    for name, load in commands.items():
        if words is None or name == asked:
            load()(subparsers)
        else:
            subparsers.add_parser(name, help=_SUMMARIES.get(name, ""))
    return parser


def _find_commands() -> tuple[str | None, dict[str, Callable[[], _Register]]]:
    """Return the installed version, and by the name of each subcommand what loads the function that registers it.

    On a board the packages may lie on PYTHONPATH without having been installed: then there is no version and there are
    no entry points, and the commands of this package are all there is.
    """
    try:
        distribution = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        own = importlib.import_module("asymcir_edge.commands")
        names = [name.removeprefix(_REGISTER_PREFIX) for name in vars(own) if name.startswith(_REGISTER_PREFIX)]
        return None, {name: functools.partial(getattr, own, f"{_REGISTER_PREFIX}{name}") for name in names}
    return distribution.version, {entry.name: entry.load for entry in distribution.entry_points.select(group=_GROUP)}


def _find_command(words: Sequence[str]) -> str | None:
    return next((word for word in words if not word.startswith("-")), None)


def _describe_missing_module(exc: ModuleNotFoundError, command: str | None) -> str:
    module = (exc.name or "").partition(".")[0]
    extra = _EXTRA_OF_MODULE.get(module)
    if extra is not None:
        extra = _EXTRA_OF_COMMAND.get(command or "", extra)
        return f"this command needs {module}, of the extra {extra!r}, which is not installed: {how_to_install(extra)}"
    if module.startswith(f"{_DISTRIBUTION}_"):
        return f"this installation of {_DISTRIBUTION} has no {exc.name}: install the complete distribution"
    return f"the module {exc.name or exc} is not installed: pip install --force-reinstall {_DISTRIBUTION}"


def _configure_logging(level: int) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger().setLevel(logging.WARNING)  # of the libraries that it stands on: what they load, find and parse
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)
    # Pillow warns of large pictures, where `decode_image` has its own limit, and of oddities that it got over.
    warnings.filterwarnings("ignore", module="PIL")


def _print_error(message: str) -> None:
    print(f"asymcir: error: {' '.join(message.split())}", file=sys.stderr)

"""How the command finds subcommands and what it makes of their failures."""

import argparse
import importlib.metadata
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asymcir_edge
import pytest
from asymcir_common import AsymcirError
from asymcir_edge import cli
from asymcir_edge.cli import main

Handler = Callable[[argparse.Namespace], int]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Handler]]:
    """A distribution `asymcir` whose commands are: each handler put here, `broken`, and `half`."""
    handlers: dict[str, Handler] = {}
    (tmp_path / "scripted_commands.py").write_text(
        "HANDLERS = {}\n"
        "def _add(name):\n"
        "    def register(subparsers):\n"
        "        parser = subparsers.add_parser(name)\n"
        "        parser.add_argument('--flag')\n"
        "        parser.set_defaults(run=HANDLERS[name])\n"
        "    return register\n"
        "good = _add('good')\n"
        "def half(subparsers):\n"
        "    subparsers.add_parser('half')\n"
        "    raise RuntimeError('half way')\n"
    )
    (tmp_path / "broken_commands.py").write_text("import faiss_is_not_here\n")
    info = tmp_path / "asymcir-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: asymcir\nVersion: 9.9\n")
    (info / "entry_points.txt").write_text(
        "[asymcir.commands]\n"
        "good = scripted_commands:good\n"
        "half = scripted_commands:half\n"
        "broken = broken_commands:register_broken\n"
        "absent = asymcir_absent.commands:register_absent\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    import scripted_commands  # type: ignore[import-not-found]

    monkeypatch.setattr(scripted_commands, "HANDLERS", handlers)
    yield handlers
    for name in ("scripted_commands", "broken_commands"):
        sys.modules.pop(name, None)


def _raises(error: BaseException) -> Handler:
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_handler_gets_the_arguments_and_gives_the_exit_code(commands: dict[str, Handler]) -> None:
    seen: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args)
        return 7

    commands["good"] = run
    assert main(["good", "--flag", "x"]) == 7
    assert main(["good", "--flag", "x", "-v"]) == 7
    assert main(["-v", "good"]) == 7
    assert [args.flag for args in seen] == ["x", "x", None]
    assert [getattr(args, "verbose", False) for args in seen] == [False, True, True]


def test_log_level(commands: dict[str, Handler], capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("asymcir_edge.test")

    def run(_: argparse.Namespace) -> int:
        logging.getLogger().handlers[:] = [logging.StreamHandler(sys.stderr)]
        logger.debug("a detail")
        logger.warning("a warning")
        return 0

    commands["good"] = run
    assert main(["good"]) == 0
    assert capsys.readouterr().err == "a warning\n"
    assert main(["good", "-v"]) == 0
    assert capsys.readouterr().err == "a detail\na warning\n"


def test_version_and_help(commands: dict[str, Handler], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "asymcir 9.9\n"
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n    {name}" in listed for name in ("good", "half", "broken", "absent"))


@pytest.mark.parametrize("words", [[], ["unknown"], ["--unknown"], ["good", "--unknown"]])
def test_wrong_command_line(commands: dict[str, Handler], words: list[str]) -> None:
    commands["good"] = lambda _: 0
    assert main(words) == 2


def test_broken_modules_fail_by_themselves(commands: dict[str, Handler], capsys: pytest.CaptureFixture[str]) -> None:
    commands["good"] = lambda _: 0
    assert main(["good"]) == 0
    assert main(["broken", "--any", "argument"]) == 1
    assert "the module faiss_is_not_here is not installed" in _one_line(capsys)
    assert main(["absent"]) == 1
    assert "has no asymcir_absent" in _one_line(capsys)
    assert main(["half"]) == 1
    assert "RuntimeError: half way" in _one_line(capsys)


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("faiss", "server"),
        ("tokenizers", "server"),
        ("grpc_health.v1", "server"),
        ("torch.nn", "training"),
        ("open_clip", "training"),
        ("onnx", "export"),
        ("coremltools", "export"),
    ],
)
def test_missing_extra(
    commands: dict[str, Handler], capsys: pytest.CaptureFixture[str], module: str, extra: str
) -> None:
    commands["good"] = _raises(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert main(["good"]) == 1
    assert _one_line(capsys).endswith(f"which is not installed: pip install 'asymcir[{extra}]'")


def test_missing_extra_is_that_of_the_command(
    commands: dict[str, Handler], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli._EXTRA_OF_COMMAND, "good", "export")
    commands["good"] = _raises(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert main(["good"]) == 1
    assert _one_line(capsys).endswith("of the extra 'export', which is not installed: pip install 'asymcir[export]'")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (AsymcirError("two\nlines"), 1, "two lines"),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), 1, "/a/b: No such file or directory"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("x\ny"), 1, "ZeroDivisionError: x y (unexpected; run with -v for the traceback)"),
    ],
)
def test_errors(
    commands: dict[str, Handler], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    commands["good"] = _raises(error)
    assert main(["good"]) == code
    assert _one_line(capsys) == f"asymcir: error: {line}"


def test_traceback_only_with_verbose(commands: dict[str, Handler], capsys: pytest.CaptureFixture[str]) -> None:
    commands["good"] = _raises(ZeroDivisionError("x"))
    assert main(["good", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err
    commands["good"] = _raises(AsymcirError("x"))
    assert main(["good", "-v"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_exports() -> None:
    assert asymcir_edge.__all__ == sorted(asymcir_edge.__all__)
    for name in asymcir_edge.__all__:
        found: Any = getattr(asymcir_edge, name)
        assert found.__name__ == name
        assert found.__module__.startswith("asymcir_edge.")
    with pytest.raises(AttributeError, match="No asymcir_edge attribute nothing"):
        _ = asymcir_edge.nothing

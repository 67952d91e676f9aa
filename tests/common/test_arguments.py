"""What the parser refuses, and what it says instead."""

import argparse
from pathlib import Path

import pytest
from asymcir_common.arguments import (
    ArgumentParser,
    add_device_bundle,
    add_gallery_folder,
    add_server,
    add_server_bundle,
    add_threads,
    find_nearest,
    seconds,
    whole_number,
)


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="prog")
    commands = parser.add_subparsers(metavar="COMMAND")
    build = commands.add_parser("build")
    build.add_argument("images")
    add_server_bundle(build)
    add_gallery_folder(build)
    add_threads(build, least=0, default=0, help="")
    build.add_argument("-q", "--quiet", action="store_true")
    compare = commands.add_parser("compare")
    add_server_bundle(compare, required=False)
    add_device_bundle(compare, required=False)
    ask = commands.add_parser("ask")
    add_server(ask, timeout_s=10.0)
    ask.add_argument("--text")
    return parser


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("build x --bundel B", "no option --bundel: did you mean --server-bundle?"),
        ("build x --bundle=B --gallery G", "no option --bundle: did you mean --server-bundle?"),
        ("build x --server B --gallery G", "no option --server: did you mean --server-bundle?"),
        ("compare --bundle B", "no option --bundle: did you mean --server-bundle or --device-bundle?"),
        ("compare --device B", "no option --device: did you mean --device-bundle?"),
        ("compare -bundle B", "no option -bundle: did you mean"),
        ("build x --thread 1", "no option --thread: did you mean --threads?"),
        ("build x --zzz 1", "no option --zzz: expected one of --gallery, --help, --quiet, --server-bundle, --threads"),
        ("bulid x", "no command 'bulid': did you mean build?"),
        ("nothing", "no command 'nothing': expected one of ask, build, compare"),
        ("--hlep", "no option --hlep: did you mean --help?"),
        ("build x --gallery G", "the following arguments are required: --server-bundle"),
        ("build x --threads 100000", "argument --threads: expected a whole number from 0 to 256, got 100000"),
        ("ask --server a:1 --timeout inf", "argument --timeout: expected 0.001 to 3600 seconds, got inf"),
    ],
)
def test_refusals_are_one_line(capsys: pytest.CaptureFixture[str], words: str, expected: str) -> None:
    line = refuse(capsys, *words.split())
    assert expected in line
    command = words.split()[0]
    assert line.startswith(f"prog {command}: " if command in ("build", "compare", "ask") else "prog: ")


def test_what_is_right_is_taken() -> None:
    words = ["build", "x", "-q", "--server-bundle=S", "--gallery", "G", "--threads", "4"]
    args = make_parser().parse_args(words)
    assert (args.server_bundle, args.gallery, args.threads, args.quiet) == (Path("S"), Path("G"), 4, True)
    assert make_parser().parse_args(["ask", "--server", "h:1", "--text", "--but not blue"]).text == "--but not blue"
    args = make_parser().parse_args(["build", "--server-bundle", "S", "--gallery", "G", "--", "--bundle"])
    assert args.images == "--bundle"  # a file may have any name


def test_two_words_that_are_as_near() -> None:
    assert find_nearest("--bundle", ["--device-bundle", "--server-bundle", "--out"]) == [
        "--device-bundle",
        "--server-bundle",
    ]
    assert find_nearest("--x", ["--device-bundle"]) == []
    assert find_nearest("--x", []) == []


@pytest.mark.parametrize("text", ["0", "9", "1.5", "", "nan", "1e3", "two"])
def test_whole_numbers_have_a_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"from 1 to 8, got {text}"):
        whole_number(1, 8)(text)
    assert [whole_number(1, 8)(good) for good in ("1", "8", " 3 ")] == [1, 8, 3]


@pytest.mark.parametrize("text", ["-1", "61", "nan", "inf", "soon"])
def test_times_have_a_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected 0 to 60 seconds, got {text}"):
        seconds(0, 60)(text)
    assert seconds(0, 60)("0.5") == 0.5

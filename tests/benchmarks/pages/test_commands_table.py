from pathlib import Path

from asymcir_benchmarks.pages.commands_table import lay_out_commands
from asymcir_benchmarks.pages.fill import RESULTS, fill

ROOT = Path(__file__).parents[3]
BLOCK = "<!-- commands -->\n{}<!-- end -->\n"


def _rows(command: str) -> dict[str, list[str]]:
    section = lay_out_commands().partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0]: cells[1:] for cells in lines}


def test_every_command_is_in_the_list_and_has_a_section() -> None:
    page = lay_out_commands()
    for name in ("demo", "eval triplets", "export server", "gallery build", "gallery info", "train union"):
        assert f"[`asymcir {name}`](#asymcir-{name.replace(' ', '-')})" in page and f"\n## asymcir {name}\n" in page


def test_arguments_have_their_meaning_and_default() -> None:
    rows = _rows("asymcir gallery build")
    assert rows["`IMAGES`"][1] == rows["`--server-bundle FOLDER`"][1] == rows["`--gallery FOLDER`"][1] == "required"
    assert rows["`--batch-size N`"] == ["pictures per encoder run", "32"]
    assert rows["`--target TARGET`"] == [
        "target representation: union, original, sum",
        "union, original for a bundle without a UNION head",
    ]
    assert rows["`--replace-space`"][1] == "-" and "`--verbose`" not in rows
    rows = _rows("asymcir bench-server")
    assert rows["`--rate R[,R...]`"][1] == rows["`--callers N`"][1] == "one of these is required"
    assert all(meaning and default for meaning, default in rows.values())


def test_a_changed_list_is_noticed() -> None:
    filled = fill(BLOCK.format(""), ROOT / RESULTS)
    assert "asymcir gallery build" in filled and fill(filled, ROOT / RESULTS) == filled
    assert fill(BLOCK.format("old\n"), ROOT / RESULTS) == filled

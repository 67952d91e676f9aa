import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(?P<path>[\w./-]+\.(?:py|proto))(?:: (?P<name>\w+))?`")


def _files() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def test_every_file_and_function_that_the_architecture_names_exists() -> None:
    files = _files()
    wrong, count = [], 0
    for path, name in NAMED.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")):
        pattern = re.compile(rf"(^|.*/){re.escape(path).replace(re.escape('...'), '[^/]+')}$")
        found = [file for file in files if pattern.match(file) and not file.startswith("tests/")]
        defined = re.compile(rf"^\s*(?:async )?(?:def|class) {name}\b", re.MULTILINE)
        if not found:
            wrong.append(f"no file {path}")
        elif name and not any(defined.search((ROOT / file).read_text(encoding="utf-8")) for file in found):
            wrong.append(f"no {name} in {path}")
        count += bool(name)
    assert not wrong, wrong
    assert count >= 15

import ast
import importlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(?P<path>[\w./-]+\.(?:py|proto))(?:: (?P<name>\w+))?`")
PYTHON = re.compile(r"^(?:```python\n|python .*<<'PY'\n)(.*?)^(?:```|PY$)", re.DOTALL | re.MULTILINE)
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "demo/README.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it names what was
)


def _files() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def _find_faults(page: Path) -> tuple[list[str], int]:
    """Look for the files and functions that a page names; returns what is missing, and how many functions it names."""
    files, wrong, count = _files(), [], 0
    for path, name in NAMED.findall(page.read_text(encoding="utf-8")):
        pattern = re.compile(rf"(^|.*/){re.escape(path).replace(re.escape('...'), '[^/]+')}$")
        found = [file for file in files if pattern.match(file)]
        defined = re.compile(rf"^\s*(?:async )?(?:def|class) {name}\b", re.MULTILINE)
        if not found:
            wrong.append(f"no file {path}")
        elif name and not any(defined.search((ROOT / file).read_text(encoding="utf-8")) for file in found):
            wrong.append(f"no {name} in {path}")
        count += bool(name)
    return wrong, count


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_file_and_function_that_a_page_names_exists(page: Path) -> None:
    assert _find_faults(page)[0] == []


def test_the_architecture_walks_through_functions() -> None:
    assert _find_faults(ROOT / "ARCHITECTURE.md")[1] >= 15


def test_python_is_found_on_pages() -> None:
    assert sum(len(PYTHON.findall(page.read_text(encoding="utf-8"))) for page in PAGES) >= 4


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_python_on_a_page_compiles_and_imports_what_exists(page: Path) -> None:
    for block in PYTHON.findall(page.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asymcir"):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []

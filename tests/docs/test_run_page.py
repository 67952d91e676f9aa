"""scripts/run-page on small pages."""

import os
import subprocess
from pathlib import Path

import pytest
from page_commands import ROOT, load_page_runner

PAGE = """\
```sh
number=5
sleep 300 &
```

<!-- not run: needs a phone -->

```sh
exit 9
```

```python
exit(8)
```

- in a list

  ```sh
  kill %1
  pwd > {out}/folder
  python3 - "$number" > {out}/heredoc <<'PY'
  import sys
  print("number", sys.argv[1])
  PY
  sleep 300 &
  echo $! > {out}/job
  ls README.md scripts/run-page > written-here
  ```
"""


def run(page: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "run-page"), str(page)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_blocks_run_in_one_shell_in_a_copy(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE.format(out=tmp_path), encoding="utf-8")
    done = run(tmp_path / "page.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "heredoc").read_text() == "number 5\n"
    folder = Path((tmp_path / "folder").read_text().strip())
    assert folder != ROOT and not folder.exists() and not (ROOT / "written-here").exists()
    assert "line 9 not run: needs a phone" in done.stderr and "kill %1" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "job").read_text()), 0)


def test_the_first_failure_ends_it(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```sh\n(exit 3) | cat\necho never > /dev/stderr\n```\n", encoding="utf-8")
    done = run(tmp_path / "page.md")
    assert done.returncode == 3
    assert "\nnever" not in done.stderr


def test_a_comment_excuses_the_next_block_only() -> None:
    page = "<!-- not run: why -->\n```sh\na\n```\n```sh\nb\n```\n<!-- not run: why -->\ntext\n```sh\nc\n```\n"
    blocks = load_page_runner().read_blocks(page)
    assert [(block.text, block.line, block.not_run) for block in blocks] == [
        ("a\n", 3, "why"),
        ("b\n", 6, None),
        ("c\n", 11, None),
    ]

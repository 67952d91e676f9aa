"""`asymcir explain` on the committed bundles and a real server."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _explain(asymcir: Run, assets: Path, address: str, out: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    image = assets / "queries.zip" / "red-heart.webp"
    return asymcir(
        "explain", "--image", image, "--server", address, "--device-bundle", assets / "device", "--out", out, *words
    )


def _tables(page: str) -> list[list[list[str]]]:
    """Return the cells of each row of each table."""
    tables = re.findall(r"<table>(.*?)</table>", page, re.DOTALL)
    return [[re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)] for table in tables]


def test_the_page_shows_maps_words_effects_and_answers(
    asymcir: Run, assets: Path, address: str, tmp_path: Path
) -> None:
    out = tmp_path / "heart.html"
    done = _explain(asymcir, assets, address, out, "--text", "is blue", "--server-bundle", assets / "server")
    assert done.returncode == 0, done.stderr
    page = out.read_text(encoding="utf-8")
    assert page.count('alt="what token ') == 6
    near = re.findall(r'<div class="soft words">([^<]+)</div>', page)
    assert len(near) == 6 and all(len(words.split(", ")) == 5 for words in near)
    ((_, *rows),) = _tables(page)
    assert [row[0] for row in rows] == ["“is”", "“blue”", "all of it"]
    moved = [float(row[1]) for row in rows]
    assert moved[1] > moved[0] >= 0.0 and moved[2] > 0.0  # the colour says more than the verb
    before, after = re.findall(r'<ol class="hits">(.*?)</ol>', page)
    assert "red heart" in before and "blue heart" in after
    assert 'class="new"' in after and 'class="new"' not in before
    assert not re.search(r'(?:src|href)="(?!data:)', page), "the page needs nothing from elsewhere"


def test_without_a_server_bundle_and_without_a_change(asymcir: Run, assets: Path, address: str, tmp_path: Path) -> None:
    out = tmp_path / "heart.html"
    done = _explain(asymcir, assets, address, out, "--top-k", 3)
    assert done.returncode == 0, done.stderr
    page = out.read_text(encoding="utf-8")
    assert page.count('alt="what token ') == 6 and "words" not in re.sub(
        r"<style>.*?</style>", "", page, flags=re.DOTALL
    )
    assert _tables(page) == [] and page.count('<ol class="hits">') == 1
    again = _explain(asymcir, assets, address, out)
    assert again.returncode == 1 and "--force" in again.stderr


def test_markup_in_a_change_is_text(asymcir: Run, assets: Path, address: str, tmp_path: Path) -> None:
    out = tmp_path / "heart.html"
    assert _explain(asymcir, assets, address, out, "--text", "<script>x</script> blue").returncode == 0
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page

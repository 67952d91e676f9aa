"""A hook of mkdocs: pages that stand outside `docs/` in the repository become pages of the site.

Links stay as they work in the repository, relative to the file that they stand in. Here a link to a file that is a page
or a picture of the site is rewritten to it, and a link to any other file (source, a folder) becomes its text: the site
holds no source, and the repository has no public address yet.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "demo/README.md": "demo.md",
    "training/RESULTS.md": "results.md",
}
"""A file of the repository -> the page of the site."""
PICTURES = {"demo/contact-sheet.webp": "images/contact-sheet.webp"}
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that stand outside `docs/`."""
    for source, page in PAGES.items():
        if (ROOT / source).is_file():
            content = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=content))
    for source, picture in PICTURES.items():
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    return rewrite_links(markdown, page.file.src_uri)


def rewrite_links(markdown: str, page: str) -> str:
    """Rewrite links between files of the repository to links between pages of the site.

    Args:
        markdown: the page's text; what stands in fenced code is left alone.
        page: its place in the site, "index.md" say.

    Returns:
        The text, with every link relative to `page`.
    """
    sources = {place: source for source, place in PAGES.items()}
    folder = posixpath.dirname(sources.get(page, f"docs/{page}"))

    def replace(match: "re.Match[str]") -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        place = _place(posixpath.normpath(posixpath.join(folder, target)))
        if place is None:
            return match["text"]
        relative = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{match['mark']}[{match['text']}]({relative}{'#' + anchor if anchor else ''})"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(replace, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(replace, markdown[end:])])


def _place(path: str) -> str | None:
    """Find where a file of the repository stands in the site; None if it does not."""
    if path in PAGES or path in PICTURES:
        return (PAGES | PICTURES)[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else None

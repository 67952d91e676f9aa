import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAX_README_WORDS = 700
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = sorted(
    path
    for folder in (".", "docs", "docs/api", "demo", "training", ".github")
    for path in (ROOT / folder).glob("*.md")
    if path.is_file()
)


@pytest.fixture(scope="module")
def site() -> ModuleType:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts/site_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _anchors(path: Path) -> set[str]:
    """Name the headings of a page as both the site and repository hosts do."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}


def test_the_readme_is_short() -> None:
    words = FENCE.sub("", (ROOT / "README.md").read_text(encoding="utf-8")).split()
    assert len(words) <= MAX_README_WORDS


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in _anchors(path), f"{page.name} links to {link}: no such heading"


def test_links_of_the_repository_become_links_of_the_site(site: ModuleType) -> None:
    text = "[a](docs/serve.md#load) ![b](demo/contact-sheet.webp) [c](ARCHITECTURE.md) [source](protos/x.proto) [d](https://e)"
    assert site.rewrite_links(text, "index.md") == (
        "[a](serve.md#load) ![b](images/contact-sheet.webp) [c](architecture.md) source [d](https://e)"
    )
    assert site.rewrite_links("[a](../demo/README.md#b) [c](ios.md) [d](#e)", "serve.md") == (
        "[a](demo.md#b) [c](ios.md) [d](#e)"
    )
    assert site.rewrite_links("[a](../README.md)", "demo.md") == "[a](index.md)"
    assert site.rewrite_links("[a](../serve.md)", "api/edge.md") == "[a](../serve.md)"
    fenced = "```\n[a](docs/serve.md)\n```\n"
    assert site.rewrite_links(fenced, "index.md") == fenced


def test_every_page_of_the_site_exists_in_the_repository(site: ModuleType) -> None:
    assert [source for source in (*site.PAGES, *site.PICTURES) if not (ROOT / source).is_file()] == []


def test_pre_commit_runs_what_make_check_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile[makefile.index("\ncheck:") :].split("\n\n")[0]
    commands = re.findall(r"^\t\$\(DEV\)/bin/(.+)$", recipe, re.MULTILINE)
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    wanted = {command.removesuffix(" .") for command in commands}
    found = {entry.removeprefix(".venv-dev/bin/").removesuffix(" --force-exclude") for entry in entries}
    assert found == wanted | {"make proto-check"}


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_forms_are_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    papers = {identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]}
    assert papers == {"arXiv:2403.01431", "arXiv:2511.22253"}

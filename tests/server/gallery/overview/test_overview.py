"""The page of a gallery: what it shows is what the gallery holds, and nothing in it comes from elsewhere."""

import html.parser
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import BundleError
from asymcir_edge.cli import main
from asymcir_server import Gallery, ServerBundle, build_gallery
from asymcir_server.gallery import BuildConfig, IndexConfig
from asymcir_server.gallery.overview import GateCounter, Summary, render_page, summarise
from asymcir_server.gallery.overview.summary import project
from PIL import Image
from tiny_server_bundle import TinyModel, write_tiny_bundle

SIZE = 24
NASTY = "<script>alert('x')</script>&"


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return TinyModel()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> Path:
    """SIZE pictures, one of them twice, with an index and thumbnails; one file that is no picture."""
    root = tmp_path_factory.mktemp("overview")
    bundle = ServerBundle.load(write_tiny_bundle(root / "bundle", model))
    rng = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for number in range(SIZE - 1):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{number:02}.png")
    (root / "pictures" / "copy.png").write_bytes((root / "pictures" / "00.png").read_bytes())
    (root / "pictures" / "broken.png").write_bytes(b"no picture")
    index = IndexConfig(kind="ivf-sq8", recall=0.9)
    build_gallery(root / "pictures", bundle, root / "shop", config=BuildConfig(thumbnail_side=4, index=index))
    return root / "shop"


def _summarise(folder: Path) -> Summary:
    with closing(Gallery.open(folder)) as opened:
        return summarise(opened)


def test_gates_are_counted_as_numpy_counts_them() -> None:
    rng = np.random.default_rng(1)
    gates = rng.normal(0.7, 0.1, 1000).astype(np.float32)
    counter = GateCounter()
    assert counter.to_record() is None
    counter.add(gates[:300])
    counter.add(np.append(gates[300:], np.float32("nan")))
    record = counter.to_record()
    assert record is not None and record["pictures"] == 1000
    assert record["mean"] == pytest.approx(gates.mean(), abs=1e-4)
    assert record["standard_deviation"] == pytest.approx(gates.std(), abs=1e-4)
    expected, edges = np.histogram(gates.astype(np.float64), bins=400, range=(-1.0, 3.0))
    filled = np.flatnonzero(expected)
    assert record["bins"] == expected[filled[0] : filled[-1] + 1].tolist()
    assert (record["least"], record["most"]) == pytest.approx((edges[filled[0]], edges[filled[-1] + 1]))


def test_gates_far_out_are_counted_at_the_ends() -> None:
    counter = GateCounter()
    counter.add(np.array([-50.0, 0.005, 80.0], np.float32))
    record = counter.to_record()
    assert record is not None
    assert (record["bins"][0], record["bins"][-1], sum(record["bins"])) == (1, 1, 3)


def test_the_map_is_the_plane_of_most_variance() -> None:
    rng = np.random.default_rng(2)
    vectors = (rng.normal(size=(50, 8)) * np.array([5.0, 3.0, *[0.1] * 6])).astype(np.float32)
    places, explained = project(vectors)
    _, values, right = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    assert explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-4)
    assert (places.min(), places.max()) == (0.0, 1.0)
    for axis in range(2):
        expected = (vectors - vectors.mean(axis=0)) @ right[axis]
        assert abs(np.corrcoef(expected, places[:, axis])[0, 1]) == pytest.approx(1.0, abs=1e-4)


def test_equal_vectors_are_one_place() -> None:
    places, explained = project(np.ones((3, 4), np.float32))
    assert (places == 0.0).all() and explained == 0.0


def test_the_page_says_what_the_gallery_holds(gallery: Path, model: TinyModel) -> None:
    summary = _summarise(gallery)
    assert (summary.size, summary.folder, summary.version) == (SIZE, "shop", "000001")
    assert (summary.duplicates.total, summary.duplicates.kinds) == (1, {"exact": 1})
    assert sorted(summary.duplicates.first[0]["ids"]) == ["00.png", "copy.png"]
    assert summary.quarantined.total == 1 and summary.quarantined.first[0]["id"] == "broken.png"
    assert len(summary.points) == SIZE and all(point.thumbnail for point in summary.points)
    page = render_page(summary)
    assert f"<td>pictures</td><td>{SIZE}</td>" in page and "broken.png" in page and "copy.png" in page
    assert page.count("<image ") == SIZE and page.count('class="on"') == 1
    _Checker().feed(page)


def test_a_change_is_shown_and_names_are_escaped(gallery: Path) -> None:
    summary = _summarise(gallery)
    point = summary.points[0]
    nasty = type(point)(identity=NASTY, x=point.x, y=point.y, thumbnail=None)
    page = render_page(
        type(summary)(
            **{name: getattr(summary, name) for name in summary.__slots__}
            | {"points": [nasty], "folder": NASTY, "columns": {NASTY: "text"}, "changes": (3, 2, 1)}
        )
    )
    assert "3 added, 2 removed, 1 with other metadata" in page
    assert NASTY not in page and page.count("&lt;script&gt;") == 4
    _Checker().feed(page)


def test_the_build_counts_the_gates_of_its_union_head(gallery: Path, model: TinyModel) -> None:
    gates = _summarise(gallery).properties["gates"]
    with closing(Gallery.open(gallery)) as opened:
        assert opened.target == "union"
    assert gates["pictures"] == SIZE - 1  # the copy is not encoded
    assert gates["least"] <= gates["mean"] <= gates["most"]


def test_the_command_writes_the_page(gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["gallery", "info", "--gallery", str(gallery), "--html", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    assert "Recall and time" in page.read_text(encoding="utf-8")
    with pytest.raises(BundleError, match="no gallery"):
        _summarise(tmp_path / "absent")


class _Checker(html.parser.HTMLParser):
    """Refuses scripts, and whatever a page may load from elsewhere."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert re.match(r"data:image/webp;base64,", value or "")

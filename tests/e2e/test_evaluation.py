"""EmojiCIR against naive full-matrix versions: ranks through the committed bundles, everything through tiny ones."""

import json
import math
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from asymcir_benchmarks.emojicir.evaluate import METHODS, evaluate_triplets, read_triplets
from asymcir_benchmarks.pages.emojicir_tables import format_recalls, recall_figures
from asymcir_benchmarks.retrieval.metrics import NOT_FOUND
from asymcir_common import preprocess, read_image
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_server import Gallery, ServerBundle, TextEncoder, VisualEncoder
from asymcir_server.gallery.snapshots import current_snapshot
from numpy.typing import NDArray
from PIL import Image
from tiny_device_bundle import encode_naively, write_device_bundle
from tiny_server_bundle import TinyModel, write_tiny_bundle


def test_ranks_equal_those_of_the_full_score_matrix(assets: Path, gallery: Path) -> None:
    bundle = ServerBundle.load(assets / "server", threads=1)
    encoder = QueryEncoder(DeviceBundle.load(assets / "device"))
    opened = Gallery.open(gallery, bundle.target_spaces)
    everything = [opened.metadata([triplet.target])[0] for triplet in read_triplets(assets / "triplets.jsonl")]
    triplets = [
        triplet
        for triplet, record in zip(read_triplets(assets / "triplets.jsonl"), everything, strict=True)
        if record.get("name")
    ][:12]
    names = {triplet.target: opened.metadata([triplet.target])[0]["name"] for triplet in triplets}
    found = evaluate_triplets(
        triplets,
        pictures=assets / "queries.zip",
        suffix=".webp",
        names=names,
        bundle=bundle,
        encoder=encoder,
        gallery=opened,
    )
    vectors = np.load(current_snapshot(gallery) / "vectors.npy")
    with sqlite3.connect(current_snapshot(gallery) / "metadata.sqlite") as database:
        slug_of = dict(database.execute("SELECT row, id FROM items"))
    text, visual = TextEncoder(bundle), VisualEncoder(bundle)
    for number, triplet in enumerate(triplets):
        picture = read_image(assets / "queries.zip" / f"{triplet.reference}.webp")
        image = visual.encode_image(preprocess(picture, visual.preprocessing)[None])[0]
        typed = text.encode_text([triplet.modifier])[0]
        image, typed = image / np.linalg.norm(image), typed / np.linalg.norm(typed)
        tokens = encoder.encode_image(picture).astype(np.float16).astype(np.float32)
        for method, query in (
            ("composed", text.encode_queries([tokens], [triplet.modifier])[0]),
            ("picture + text", (image + typed) / np.linalg.norm(image + typed)),
        ):
            ranking = [slug_of[int(row)] for row in np.argsort(-(vectors @ query), kind="stable")]
            ranking = [slug for slug in ranking if slug != triplet.reference]
            rank = ranking.index(triplet.target) + 1
            assert found.ranks[method][number] == (rank if rank <= 10 else NOT_FOUND)
    figures = recall_figures(found, "triplets")
    assert figures["triplets, composed, all, R@10"] == round(float((found.ranks["composed"] <= 10).mean()), 6)
    assert all(method in format_recalls(found) for method in METHODS)
    opened.close()


Run = Callable[..., "subprocess.CompletedProcess[str]"]
CONCEPTS = [
    f"{kind}-{tone}" for kind in ("cat", "dog", "woman", "man", "heart", "flag") for tone in ("red", "dark", "x")
]
STYLES = ("one", "two")
SPLITS = ("test", "novel", "dev")
TRIPLETS = [
    (reference, f"is {word}", target, family, SPLITS[number % 3])
    for number, (reference, word, target, family) in enumerate(
        (f"{kind}-{tone}", other, f"{kind}-{other}", family)
        for kind, family in (
            ("cat", "colour"),
            ("dog", "colour"),
            ("woman", "hair"),
            ("heart", "hair"),
            ("flag", "hair"),
        )
        for tone in ("red", "dark", "x")
        for other in ("red", "dark", "x")
        if tone != other
    )
]


@dataclass(frozen=True)
class Tiny:
    """A data set of random pictures with two styles a concept, and its tiny bundles."""

    folder: Path
    model: TinyModel
    rows: list[dict[str, str]]

    def pixels(self, path: Path) -> NDArray[np.uint8]:
        return read_image(path)

    def targets(self, kind: str) -> NDArray[np.float32]:
        """Reference gallery vectors [N, E]."""
        squares = np.stack(
            [
                preprocess(self.pixels(self.folder / "gallery" / row["path"]), self.model.preprocessing)
                for row in self.rows
            ]
        )
        image = self.model.image_features(squares)
        null = np.broadcast_to(self.model.text_features(self.model.weights["table"][[1, 2]]), image.shape)
        mixed = {"union": self.model.union(image, null), "original": image, "sum": image + null}[kind]
        return _unit(mixed)

    def composed(self, path: Path, modifier: str) -> NDArray[np.float32]:
        tokens = encode_naively(self.pixels(path)).astype(np.float16).astype(np.float32)
        return _unit(self.model.text_features(self.model.compose(tokens, modifier)))

    def large(self, path: Path) -> NDArray[np.float32]:
        square = preprocess(self.pixels(path), self.model.preprocessing)
        return _unit(self.model.image_features(square[None])[0])

    def text(self, words: str) -> NDArray[np.float32]:
        table = self.model.weights["table"]
        return _unit(self.model.text_features(np.stack([table[i] for i in (1, *self.model.word_ids(words), 2)])))

    def ranking(self, query: NDArray[np.float32], kind: str, without: str = "") -> list[dict[str, str]]:
        order = np.argsort(-(self.targets(kind) @ query), kind="stable")
        return [self.rows[int(row)] for row in order if self.rows[int(row)]["concept"] != without]


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("assets")
    rng = np.random.default_rng(3)
    for name in ("gallery", "queries", "sketches", "coloured"):
        (folder / name).mkdir()

    def draw(path: Path) -> None:
        coarse = rng.integers(0, 256, size=(2, 2, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(8, axis=0).repeat(8, axis=1)).save(path, lossless=True)

    rows: list[dict[str, str]] = []
    for concept in CONCEPTS:
        for name in ("queries", "sketches", "coloured"):
            draw(folder / name / f"{concept}.webp")
        for style in STYLES:
            path = folder / "gallery" / f"{concept}-{style}.webp"
            draw(path)
            row = {"path": path.name, "id": path.stem, "concept": concept, "name": concept.replace("-", " ")}
            rows.append(
                {**row, "figure": concept.partition("-")[0], "drawing": path.stem, "split": "test", "group": "x"}
            )
    # "woman-dark" is drawn like "woman-x" in the second style: either answers. (Within one figure, since pictures that
    # tie come in any order, and a sketch asks for the figure.)
    shared = (folder / "gallery" / "woman-x-two.webp").read_bytes()
    (folder / "gallery" / "woman-dark-two.webp").write_bytes(shared)
    next(row for row in rows if row["id"] == "woman-dark-two")["drawing"] = "woman-x-two"
    _write_rows(folder / "gallery" / "gallery.jsonl", rows)
    fields = ("reference", "modifier", "target", "family", "split")
    _write_rows(folder / "triplets.jsonl", [dict(zip(fields, triplet, strict=True)) for triplet in TRIPLETS])
    slugs = [{"slug": concept, "split": SPLITS[number % 2]} for number, concept in enumerate(CONCEPTS)]
    _write_rows(folder / "identity.jsonl", slugs)
    _write_rows(folder / "sketches.jsonl", slugs)
    model = TinyModel(word_width=8)
    write_tiny_bundle(folder / "server", model)
    write_device_bundle(folder / "device", word_space=model.word_space, parameters=48 * 32, macs=48 * 32)
    return Tiny(folder=folder, model=model, rows=rows)


@pytest.fixture(scope="module")
def figures(tiny: Tiny, asymcir: Run, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, float]:
    out = tmp_path_factory.mktemp("out") / "emojicir.json"
    done = asymcir("eval", "emojicir", "--assets", tiny.folder, "--out", out)
    assert done.returncode == 0, done.stderr
    for words in ("test: ", "novel: ", "reached", "parameters, M", "union - original"):
        assert words in done.stdout
    assert "dev:" not in done.stdout and "3 galleries" in done.stderr
    found: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))["figures"]
    return found


def _answers(concept: str) -> set[str]:
    shared = {"woman-x": {"woman-dark-two"}, "woman-dark": {"woman-x-two"}}
    return {f"{concept}-{style}" for style in STYLES} | shared.get(concept, set())


def _rank(ranking: list[dict[str, str]], answers: set[str]) -> int:
    return min(place for place, row in enumerate(ranking, start=1) if row["id"] in answers)


@pytest.mark.parametrize("kind", ["union", "original", "sum"])
@pytest.mark.parametrize("split", ["test", "novel"])
def test_composed_queries_in_each_gallery_equal_a_naive_ranking(
    tiny: Tiny, figures: Mapping[str, float], kind: str, split: str
) -> None:
    ranks: dict[str, list[int]] = {"colour": [], "hair": []}
    for reference, modifier, target, family, its in TRIPLETS:
        if its == split:
            query = tiny.composed(tiny.folder / "queries" / f"{reference}.webp", modifier)
            ranks[family].append(_rank(tiny.ranking(query, kind, without=reference), _answers(target)))
    everything = np.array(ranks["colour"] + ranks["hair"])
    for k in (1, 10):
        assert figures[f"{split} targets, {kind}, composed, R@{k}"] == pytest.approx((everything <= k).mean(), abs=1e-6)
    if kind == "union":
        for family, found in ranks.items():
            assert figures[f"{split} triplets of {family}"] == len(found)
            for k in (1, 5, 10):
                share = float((np.array(found) <= k).mean())
                assert figures[f"{split} triplets, composed, {family}, R@{k}"] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("split", ["test", "novel"])
def test_every_baseline_equals_a_naive_ranking(tiny: Tiny, figures: Mapping[str, float], split: str) -> None:
    asked = [triplet for triplet in TRIPLETS if triplet[-1] == split]
    found: dict[str, list[int]] = {method: [] for method in METHODS}
    for reference, modifier, target, *_ in asked:
        path = tiny.folder / "queries" / f"{reference}.webp"
        queries = {
            "composed": tiny.composed(path, modifier),
            "tokens only": tiny.composed(path, ""),
            "picture only": tiny.large(path),
            "text only": tiny.text(modifier),
            "picture + text": _unit(tiny.large(path) + tiny.text(modifier)),
            "target's name": tiny.text(target.replace("-", " ")),
        }
        for method, query in queries.items():
            found[method].append(_rank(tiny.ranking(query, "union", without=reference), _answers(target)))
    for method, ranks in found.items():
        for k in (1, 5, 10):
            share = float((np.array(ranks) <= k).mean())
            assert figures[f"{split} triplets, {method}, all, R@{k}"] == pytest.approx(share, abs=1e-6), method


@pytest.mark.parametrize("split", ["test", "novel"])
def test_pictures_by_themselves_equal_a_naive_ranking(tiny: Tiny, figures: Mapping[str, float], split: str) -> None:
    slugs = CONCEPTS[SPLITS.index(split) :: 2]
    for method, encode in (
        ("tokens only", lambda path: tiny.composed(path, "")),
        ("picture only", tiny.large),
    ):
        queries = [encode(tiny.folder / "queries" / f"{slug}.webp") for slug in slugs]
        ranks = np.array(
            [_rank(tiny.ranking(q, "union"), _answers(slug)) for q, slug in zip(queries, slugs, strict=True)]
        )
        for k in (1, 10):
            assert figures[f"{split} pictures, {method}, R@{k}"] == pytest.approx((ranks <= k).mean(), abs=1e-6)
    assert figures[f"{split} pictures"] == len(slugs) == 9


@pytest.mark.parametrize("split", ["test", "novel"])
def test_sketches_equal_a_naive_ranking(tiny: Tiny, figures: Mapping[str, float], split: str) -> None:
    slugs = CONCEPTS[SPLITS.index(split) :: 2]
    cases = (
        ("tokens of line art", "sketches", lambda path: tiny.composed(path, "")),
        ("large tower of line art", "sketches", tiny.large),
        ("tokens of colour", "coloured", lambda path: tiny.composed(path, "")),
        ("large tower of colour", "coloured", tiny.large),
    )
    for method, folder, encode in cases:
        scores: dict[str, list[float]] = {name: [] for name in ("R@10", "mAP@all", "P@1", "P@5", "P@10")}
        for slug in slugs:
            ranking = tiny.ranking(encode(tiny.folder / folder / f"{slug}.webp"), "union")
            relevant = [row["figure"] == slug.partition("-")[0] for row in ranking]
            precisions = [sum(relevant[:k]) / k for k in range(1, len(relevant) + 1)]
            assert sum(relevant) == 6  # three tones in two styles
            scores["mAP@all"].append(math.fsum(p for p, hit in zip(precisions, relevant, strict=True) if hit) / 6)
            scores["R@10"].append(float(any(relevant[:10])))
            for k in (1, 5, 10):
                scores[f"P@{k}"].append(precisions[k - 1])
        for name, values in scores.items():
            assert figures[f"{split} sketches, {method}, {name}"] == pytest.approx(np.mean(values), abs=1e-6), method


def test_the_device_model_is_counted(figures: Mapping[str, float]) -> None:
    assert figures["goals of device, parameters, M"] == pytest.approx(48 * 32 / 1e6, abs=1e-6)
    assert figures["goals of device, compute, GMACs"] == pytest.approx(48 * 32 / 1e9, abs=1e-6)
    assert figures["goals of device, parameters, M, reached"] == 1.0


def test_one_split_alone_and_galleries_that_are_kept(tiny: Tiny, asymcir: Run, tmp_path: Path) -> None:
    words = ("eval", "emojicir", "--assets", tiny.folder, "--split", "dev", "--work", tmp_path / "work")
    done = asymcir(*words, "--out", tmp_path / "dev.json")
    assert done.returncode == 0, done.stderr
    assert "dev has 0 identity queries and 0 sketches" in done.stderr
    figures = json.loads((tmp_path / "dev.json").read_text(encoding="utf-8"))["figures"]
    assert {key.split()[0] for key in figures} == {"dev", "goals"} and "dev triplets, composed, all, R@1" in figures
    assert current_snapshot(tmp_path / "work" / "sum").is_dir()


def test_a_broken_data_set_is_one_line(tiny: Tiny, asymcir: Run, tmp_path: Path) -> None:
    copy = tmp_path / "assets"
    shutil.copytree(tiny.folder, copy)
    (copy / "queries" / "cat-red.webp").unlink()
    done = asymcir("eval", "emojicir", "--assets", copy)
    assert done.returncode == 1 and "lacks 1 of" in done.stderr and "cat-red.webp" in done.stderr
    shutil.copy(tiny.folder / "queries" / "cat-red.webp", copy / "queries")
    _write_rows(copy / "identity.jsonl", [{"slug": "ghost", "split": "test"}, {"slug": "cat-red", "split": "test"}])
    shutil.copy(tiny.folder / "queries" / "cat-red.webp", copy / "queries" / "ghost.webp")
    done = asymcir("eval", "emojicir", "--assets", copy)
    assert done.returncode == 1 and "no picture of, the first 'ghost'" in done.stderr
    _write_rows(copy / "identity.jsonl", [{"slug": "cat-red", "split": "test"}])
    (copy / "gallery" / "dog-x-one.webp").write_bytes(b"not a picture")
    done = asymcir("eval", "emojicir", "--assets", copy, "--work", tmp_path / "work")
    assert done.returncode == 1 and "cannot be used" in done.stderr and "Traceback" not in done.stderr
    fields = ("reference", "modifier", "target", "family", "split")
    _write_rows(copy / "triplets.jsonl", [dict(zip(fields, TRIPLETS[0], strict=True))])
    done = asymcir("eval", "emojicir", "--assets", copy, "--split", "novel")
    assert done.returncode == 1 and "no composed queries of the split 'novel': it has test" in done.stderr
    _write_rows(copy / "triplets.jsonl", [dict(zip(fields[:4], TRIPLETS[0][:4], strict=True))])
    done = asymcir("eval", "emojicir", "--assets", copy, "--split", "test")
    assert done.returncode == 1 and "no composed queries of the split 'test': it has none" in done.stderr

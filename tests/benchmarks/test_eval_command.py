"""`asymcir eval emojicir` from its files to its figures, on bundles of random weights."""

import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from asymcir_benchmarks import commands
from asymcir_benchmarks.emojicir.dataset import SPLITS, EmojiCir
from asymcir_benchmarks.emojicir.evaluate import rank_triplets
from asymcir_benchmarks.emojicir.rules import Triplet
from asymcir_benchmarks.pages.token_tables import lay_out_tokens
from asymcir_edge.cli import main
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery
from onnx import helper, numpy_helper
from PIL import Image
from tiny_device_bundle import MAPS_SHAPE, SENTENCE_LENGTH, WORD_WIDTH, make_encoder, write_device_bundle
from tiny_server_bundle import TinyModel, write_tiny_bundle, write_tiny_manifest

COLOURS = ("red", "blue", "green", "yellow", "black", "white")
SLUGS = tuple(f"{colour}-{thing}" for colour in COLOURS for thing in ("heart", "flag"))


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """Twelve random pictures; every thing is asked for from the colour before, in "test" and "novel" by turns."""
    folder = tmp_path / "assets"
    rng = np.random.default_rng(0)
    for name in ("gallery", "queries", "sketches", "coloured"):
        (folder / name).mkdir(parents=True)
        for slug in SLUGS:
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{slug}.webp", lossless=True)
    gallery = [
        {"path": f"{s}.webp", "id": s, "name": s.replace("-", " "), "group": "g", "figure": s, "drawing": s}
        for s in SLUGS
    ]
    _write_rows(folder / "gallery" / "gallery.jsonl", [{**row, "split": "test"} for row in gallery])
    triplets = []
    for number, slug in enumerate(SLUGS):
        colour, thing = slug.split("-")
        family, split = ("colour" if thing == "heart" else "direction"), ("test", "novel")[number // 2 % 2]
        row = {"reference": SLUGS[number - 2], "modifier": f"is {colour}", "target": slug}
        triplets.append({**row, "family": family, "split": split})
    _write_rows(folder / "triplets.jsonl", triplets)
    _write_rows(folder / "identity.jsonl", [{"slug": slug, "split": "test"} for slug in SLUGS[:5]])
    _write_rows(folder / "sketches.jsonl", [{"slug": slug, "split": "test"} for slug in SLUGS[:4]])
    model = TinyModel(word_width=WORD_WIDTH)
    write_tiny_bundle(folder / "server", model)
    write_device_bundle(folder / "device", word_space=model.word_space, parameters=7_000_000, macs=100_000_000)
    return folder


def test_the_choices_are_the_data_sets_splits() -> None:
    assert commands.SPLITS == SPLITS and set(commands.PUBLISHED) < set(SPLITS)


def test_both_published_splits_by_default(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert main(["eval", "emojicir", "--assets", str(assets), "--out", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["command"] != commands.COMMAND  # of another folder than the published one
    figures = record["figures"]
    assert {key.split()[0] for key in figures} >= {"test", "novel"}
    assert all(math.isfinite(value) for value in figures.values())
    assert not any(key.startswith("novel sketches") for key in figures)  # that split has none
    assert figures["goals of device, parameters, M"] == 7.0 and figures["goals of device, compute, GMACs"] == 0.1
    printed = capsys.readouterr().out
    for text in ("test: 6 composed queries", "novel: 6 composed queries", "R@1 by family", "mAP@all", "union - sum"):
        assert text in printed
    assert "reached" in printed and "not reached" in printed


def test_one_split_is_measured_alone(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, out = tmp_path / "work", tmp_path / "figures.json"
    words = ["eval", "emojicir", "--assets", str(assets), "--split", "novel", "--work", str(work), "--out", str(out)]
    assert main(words) == 0
    assert sorted(path.name for path in work.iterdir()) == ["original", "sum", "union"]
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["command"] != commands.COMMAND  # which would measure both
    assert not any(key.startswith("test") for key in record["figures"])
    assert "test: " not in capsys.readouterr().out


def test_a_bundle_without_a_union_head_is_measured_on_its_other_targets(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (assets / "server" / "union_head.onnx").unlink()
    model = TinyModel(word_width=WORD_WIDTH)
    spaces = {target: space for target, space in model.target_spaces.items() if target != "union"}
    write_tiny_manifest(assets / "server", model, union=None, target_spaces=spaces)
    out = tmp_path / "figures.json"
    assert main(["eval", "emojicir", "--assets", str(assets), "--out", str(out)]) == 0
    figures = json.loads(out.read_text(encoding="utf-8"))["figures"]
    assert "test targets, original - sum, composed, R@10" in figures and not any("union" in key for key in figures)
    assert "union - " not in capsys.readouterr().out


def test_a_split_without_queries_is_said_before_anything_is_built(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    assert main(["eval", "emojicir", "--assets", str(assets), "--split", "dev", "--work", str(work)]) != 0
    assert "'dev'" in capsys.readouterr().err
    assert not work.exists()


def test_an_absent_picture_is_named(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (assets / "coloured" / f"{SLUGS[0]}.webp").unlink()
    assert main(["eval", "emojicir", "--assets", str(assets)]) != 0
    assert f"{SLUGS[0]}.webp" in capsys.readouterr().err


def test_every_picture_of_the_reference_is_taken_out_and_no_other(assets: Path, tmp_path: Path) -> None:
    """The query is the reference's own vector: the target stands where it would in a gallery without the reference."""
    rows = [json.loads(line) for line in (assets / "gallery" / "gallery.jsonl").read_text().splitlines()]
    second = {**rows[0], "id": "again", "path": rows[1]["path"], "concept": rows[0]["id"], "drawing": "again"}
    _write_rows(assets / "gallery" / "gallery.jsonl", [*rows, second])
    bundle, dataset = ServerBundle.load(assets / "server"), EmojiCir.load(assets)
    report = build_gallery(dataset.gallery_list, bundle, tmp_path / "g", config=BuildConfig(target="original"))
    vectors = np.load(report.snapshot / "vectors.npy")
    with closing(Gallery.open(tmp_path / "g", bundle.target_spaces)) as gallery:
        ranking = gallery.search(vectors[:1], gallery.size).ids[0]
        assert ranking[0] in {SLUGS[0], "again"}
        left = [identity for identity in ranking if identity not in {SLUGS[0], "again"}]
        for place in (1, 5, 10):
            triplet = Triplet(reference=SLUGS[0], modifier="", target=left[place - 1], family="colour")
            found = rank_triplets([triplet], {"composed": vectors[:1]}, gallery, dataset.catalogue)
            assert found.ranks["composed"].tolist() == [place]


def test_tokens_are_compared_and_ranked_with_some_of_them(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "tokens", "--device-bundle", str(assets / "device"), "--pictures", str(assets / "queries")]
    out = tmp_path / "tokens.json"
    assert main([*words, "--assets", str(assets), "--split", "test", "--out", str(out)]) == 0
    printed, figures = capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))["figures"]
    assert "effective rank" in printed and "without token 1" in printed and figures["pictures"] == len(SLUGS)
    assert -1.0 <= figures["cosine between tokens of a picture"] <= 1.0
    # All tokens are the composed query of the evaluation, in the same gallery.
    whole = tmp_path / "whole.json"
    assert main(["eval", "emojicir", "--assets", str(assets), "--split", "test", "--out", str(whole)]) == 0
    evaluated = json.loads(whole.read_text(encoding="utf-8"))["figures"]
    for k in (1, 10):
        families = [evaluated[f"test triplets, composed, {family}, R@{k}"] for family in ("colour", "direction")]
        assert figures[f"test, all tokens, R@{k}"] == pytest.approx(np.mean(families), abs=1e-4)
        own = evaluated[f"test pictures, tokens only, R@{k}"]
        assert figures[f"test, all tokens, own concept, R@{k}"] == pytest.approx(own, abs=1e-4)
    assert 0 < figures["1 tokens, bytes, fp16"] < figures[f"{SENTENCE_LENGTH} tokens, bytes, fp16"]
    table = lay_out_tokens(json.loads(out.read_text(encoding="utf-8")))
    assert "own concept, R@10" in table and "| 1 tokens |" in table and "text encoder, ms" in table


def test_what_tokens_share_is_measured_where_the_bundle_gives_maps(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_device_bundle(tmp_path / "b", {"fp32": make_encoder(maps_shape=MAPS_SHAPE)})
    names = {"centred rank of a picture's tokens", "attention that two tokens share"}
    for folder, expected in ((bundle, names), (assets / "device", {"centred rank of a picture's tokens"})):
        out = tmp_path / "tokens.json"
        words = ["--device-bundle", str(folder), "--pictures", str(assets / "queries"), "--out", str(out)]
        assert main(["eval", "tokens", *words]) == 0
        printed, record = capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))
        assert names & record["figures"].keys() == expected
        assert ("attention that two tokens share" in printed) == (len(expected) == 2) and "centred rank" in printed
        table = lay_out_tokens(record)
        assert all((name in table) == (name in expected) for name in names)
    assert "warning" not in printed


def test_tokens_that_are_nearly_one_are_warned_of(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_encoder()
    repeated = model.graph.node[-1].input[0]
    first = [("from", [0]), ("to", [WORD_WIDTH]), ("axis", [1]), ("times", [1, SENTENCE_LENGTH])]
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in first)
    nodes = [
        helper.make_node("Slice", [repeated, "from", "to", "axis"], ["first"]),
        helper.make_node("Tile", ["first", "times"], ["same"]),
    ]
    model.graph.node[-1].input[0] = "same"
    last = model.graph.node.pop()
    model.graph.node.extend([*nodes, last])
    bundle = write_device_bundle(tmp_path / "b", {"fp32": model})
    assert main(["eval", "tokens", "--device-bundle", str(bundle), "--pictures", str(assets / "queries")]) == 0
    printed = capsys.readouterr().out
    assert "centred rank (without what a token says of every picture): 1.00 of 4" in printed
    assert "warning: the 4 tokens of a picture are nearly one (mean cosine 1.000, effective rank 1.00" in printed


def test_a_server_bundle_without_queries_is_refused(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "tokens", "--device-bundle", str(assets / "device"), "--pictures", str(assets / "queries")]
    assert main([*words, "--server-bundle", str(assets / "server")]) == 1
    assert "pass --assets too" in capsys.readouterr().err

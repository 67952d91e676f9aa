"""`asymcir eval triplets` from a list of pictures to its figures, every system, on a tiny foundation."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_benchmarks import commands
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.retrieval.query_systems import BASELINES, SYSTEMS, TRAINED_SYSTEMS, QuerySystem
from asymcir_benchmarks.retrieval.triplets import CUTS, evaluate_triplets
from asymcir_common import Preprocessing, preprocess, read_image
from asymcir_edge.cli import main
from asymcir_training import Foundation, LightEncoder, UnionHead, load_foundation, save_light_encoder, save_union_head
from asymcir_training.models.checkpoints import save_symmetric_encoder, save_transagg
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.models.transagg import TransAgg
from asymcir_training.trainers.targets import TARGETS
from asymcir_training.triplets.formats import FORMATS, read_triplets
from asymcir_training.triplets.triplet import PictureTriplet
from PIL import Image
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH, write_clip
from torch.nn import functional

COUNT = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, triplets over them, a foundation and a checkpoint of every kind."""
    folder = tmp_path_factory.mktemp("triplets")
    rng = np.random.default_rng(0)
    for name, count in (("pictures", COUNT), ("others", 5)):
        (folder / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    rows = [
        {
            "reference": f"pictures/{number}.png",
            "modifier": ("is red", "is blue", "")[number % 3],
            "target": f"pictures/{(number + 1) % COUNT}.png",
        }
        for number in range(COUNT)
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_clip(folder / "clip")
    foundation = load_foundation(f"local-dir:{folder / 'clip'}")
    torch.manual_seed(0)
    head, fusion = UnionHead(EMBEDDING_WIDTH), TransAgg(EMBEDDING_WIDTH)
    spec = Preprocessing(size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    light = LightEncoder("test_efficientnet", sentence_length=3, word_width=WORD_WIDTH, width=32, preprocessing=spec)
    metadata = {"word_space": foundation.word_space(), "foundation": foundation.name}
    visual = {**metadata, "visual_digest": foundation.visual_digest()}
    space = foundation.target_spaces(head)["union"]
    save_union_head(folder / "union", head, metadata)
    save_union_head(folder / "other-union", UnionHead(EMBEDDING_WIDTH), metadata)
    save_transagg(folder / "transagg", fusion, {**visual, "target": "union", "target_space": space})
    save_light_encoder(folder / "isa", light, metadata)
    symmetric = SymmetricEncoder.of_foundation(foundation, sentence_length=3, width=32)
    save_symmetric_encoder(folder / "isa-symmetric", symmetric, visual)
    return folder


@pytest.fixture(scope="module")
def foundation(place: Path) -> Foundation:
    return load_foundation(f"local-dir:{place / 'clip'}")


def _words(place: Path, system: str, target: str = "original") -> list[str]:
    words = ["eval", "triplets", str(place / "list.jsonl"), "--foundation", f"local-dir:{place / 'clip'}"]
    words += ["--system", system, "--target", target, "--cache", str(place / "cache")]
    words += ["--query", str(place / system)] if system in TRAINED_SYSTEMS else []
    return words + (["--union", str(place / "union")] if target == "union" else [])


def test_the_choices_are_those_of_the_modules() -> None:
    assert commands.SYSTEMS == SYSTEMS and commands.TARGETS == TARGETS
    assert ("auto", *FORMATS) == commands.FORMATS


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_with_every_target(
    place: Path, tmp_path: Path, system: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in TARGETS:
        out = tmp_path / f"{target}.json"
        assert main([*_words(place, system, target), "--json", str(out)]) == 0
        figures = json.loads(out.read_text())["figures"]
        recalls = [figures[f"{system}, {target}, R@{k}"] for k in CUTS]
        assert recalls == sorted(recalls) and recalls[-1] == 1.0 and recalls[0] < 1.0
        assert figures[f"{system}, {target}, queries"] == figures[f"{system}, {target}, gallery pictures"] == COUNT
        for k in CUTS:
            low, high = (figures[f"{system}, {target}, R@{k} {side}"] for side in ("low", "high"))
            assert low <= figures[f"{system}, {target}, R@{k}"] <= high
        assert 1 <= figures[f"{system}, {target}, median rank"] <= COUNT - 1
        printed = capsys.readouterr().out
        assert f"{system} in a gallery of {COUNT} ({target}), {COUNT} queries" in printed and "median rank" in printed


def test_ranks_are_those_of_the_towers_run_by_hand(place: Path, foundation: Foundation, tmp_path: Path) -> None:
    triplets = read_triplets(place / "list.jsonl")
    pixels = np.stack([preprocess(read_image(triplet.reference), foundation.preprocessing) for triplet in triplets])
    with torch.no_grad():
        image = functional.normalize(foundation.encode_pixels(foundation.normalise_pixels(torch.from_numpy(pixels))))
        text = functional.normalize(foundation.encode_text([triplet.modifier for triplet in triplets]))
    queries = {"image": image, "text": text, "image+text": functional.normalize(image + text)}
    for name in BASELINES:
        report = evaluate_triplets(
            triplets, QuerySystem(name, foundation), foundation, target="original", cache=tmp_path
        )
        scores = queries[name] @ image.T
        expected = []
        for number in range(COUNT):
            wanted = scores[number, (number + 1) % COUNT]
            scores[number, number] = -2.0  # the reference
            expected.append(1 + int((scores[number] > wanted).sum()))
        assert report.ranks.tolist() == expected
    kept = evaluate_triplets(
        triplets, QuerySystem("image", foundation), foundation, target="original", keep_reference=True, cache=tmp_path
    )
    assert (kept.ranks >= 2).all()  # a picture is nearest to itself


def test_a_gallery_adds_distractors_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--gallery", str(place / "others"), "--gallery", str(place / "pictures")]
    assert main([*_words(place, "image"), *folders]) == 0
    assert f"a gallery of {COUNT + 5} " in capsys.readouterr().out


def test_unreadable_pictures_are_left_out_and_counted(
    place: Path, foundation: Foundation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(COUNT):
        (tmp_path / f"{number}.png").write_bytes((place / "pictures" / f"{number}.png").read_bytes())
    (tmp_path / "3.png").write_bytes(b"\x89PNG broken")
    rows = [{"reference": f"{i}.png", "target": f"{(i + 1) % COUNT}.png", "targets": ["3.png"]} for i in range(COUNT)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.WARNING):
        report = evaluate_triplets(
            read_triplets(tmp_path / "list.jsonl"),
            QuerySystem("image", foundation),
            foundation,
            target="original",
            cache=tmp_path / "cache",
        )
    assert (len(report.ranks), report.gallery_size, report.unreadable) == (COUNT - 2, COUNT - 1, 1)
    assert "2 triplets are left out" in caplog.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--system", "isa"], "the system isa is trained: pass its checkpoint"),
        (["--system", "image", "--query", "isa"], "the system image is the foundation alone"),
        (["--system", "image", "--target", "union"], "the target union needs a UNION head"),
        (["--system", "image", "--union", "union"], "the target original has no UNION head"),
        (["--system", "isa", "--query", "transagg"], "expected a checkpoint of kind asymcir.light-encoder"),
        (
            ["--system", "transagg", "--query", "transagg", "--target", "union", "--union", "other-union"],
            "not the one that was trained with this TransAgg",
        ),
        (["--system", "image", "--gallery", "empty"], "no picture below"),
    ],
)
def test_what_does_not_fit_is_one_line(
    place: Path, changes: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "empty").mkdir(exist_ok=True)
    words = ["eval", "triplets", str(place / "list.jsonl"), "--foundation", f"local-dir:{place / 'clip'}"]
    places = {"isa", "transagg", "union", "other-union", "empty"}
    before = ""
    for word in changes:
        words.append(str(place / word) if word in places and before != "--system" and before != "--target" else word)
        before = word
    assert main(words) == 1
    error = capsys.readouterr().err.strip()
    assert expected in error and "Traceback" not in error


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_modifier_that_does_not_fit_is_refused_before_any_picture_is_encoded(
    place: Path, tmp_path: Path, system: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (place / "list.jsonl").read_text().splitlines()]
    rows[4]["modifier"] = rows[6]["modifier"] = "is red " * 40
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = _words(place, system)
    words[2], words[words.index("--cache") + 1] = str(tmp_path / "list.jsonl"), str(tmp_path / "cache")
    if system == "image":  # which no text asks
        assert main([*words, "--images", str(place)]) == 0
        return
    assert main([*words, "--images", str(place)]) == 1
    error = capsys.readouterr().err.strip()
    assert f"{tmp_path / 'list.jsonl'}:5: the modifier takes 80 tokens and " in error and "1 more" in error
    assert "Traceback" not in error and not (tmp_path / "cache").exists()


def test_another_foundation_is_refused(place: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    other = load_foundation(f"local-dir:{write_clip(tmp_path / 'clip')}")
    with torch.no_grad():
        other.model.visual.proj.add_(1.0)  # the text tower is the same
    for name in ("isa-symmetric", "transagg"):
        with pytest.raises(BenchmarkError, match=r"trained with the foundation local-dir:clip \(visual_digest"):
            QuerySystem(name, other, place / name)
    with torch.no_grad():
        other.word_embedding_table().add_(1.0)
    with pytest.raises(BenchmarkError, match="word_space"):
        QuerySystem("isa", other, place / "isa")


def test_a_gallery_of_another_type_is_said(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert main(_words(place, "transagg", "sum")) == 0
    assert "learned to find union targets; the gallery is of sum" in caplog.text


def test_queries_may_be_of_another_kind_than_the_gallery(place: Path, foundation: Foundation, tmp_path: Path) -> None:
    # Pictures of one folder ask for their copies in another, by themselves: each must find its own, whatever else a
    # triplet excludes.
    for folder in ("asking", "answering"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        content = (place / "pictures" / f"{number}.png").read_bytes()
        (tmp_path / "asking" / f"{number}.png").write_bytes(content)
        (tmp_path / "answering" / f"{number}.png").write_bytes(content)
    triplets = [
        PictureTriplet(
            reference=tmp_path / "asking" / f"{number}.png",
            modifier="",
            target=tmp_path / "answering" / f"{number}.png",
            excluded=(tmp_path / "answering" / f"{(number + 1) % 4}.png",) if number % 2 else (),
        )
        for number in range(4)
    ]
    report = evaluate_triplets(
        triplets,
        QuerySystem("image", foundation),
        foundation,
        target="original",
        folders=[tmp_path / "answering"],
        cache=tmp_path / "cache",
    )
    assert report.ranks.tolist() == [1] * 4 and report.gallery_size == 4

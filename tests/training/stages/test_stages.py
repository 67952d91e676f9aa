"""The stages of `asymcir train`, from configuration to checkpoint, on pictures that fit in a hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asymcir_common.files import write_atomically
from asymcir_edge.cli import main
from asymcir_training import (
    CheckpointError,
    DataError,
    FoundationError,
    load_foundation,
    load_light_encoder,
    load_union_head,
)
from asymcir_training.engine.processes import Processes
from asymcir_training.errors import ConfigError
from asymcir_training.models.checkpoints import load_symmetric_encoder, load_transagg
from asymcir_training.pictures.sets import open_pictures
from asymcir_training.runs.log import read_log
from asymcir_training.stages import train_distil
from asymcir_training.stages import union as union_stage
from asymcir_training.stages.config_files import load_config
from asymcir_training.stages.foundation import embed_captions
from asymcir_training.stages.sections import DistilRun
from asymcir_training.teacher.in_memory import embed_texts
from PIL import Image
from tiny_blip import write_blip
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH, copy_sentence_encoder, write_clip
from two_processes import run_in_two_processes

VALIDATED = {"R@1", "R@5", "R@10", "R@10 first token", "R@10 mean token", "R@10 reversed"} | {
    "token_cosine",
    "effective_rank",
    "centred_rank",
    "attention_overlap",
}
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30), "black": (10, 10, 10)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of four colours, lists of them, triplets, and texts."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    records, triplets = [], []
    for name, colour in COLOURS.items():
        for number in range(4):
            pixels = np.clip(rng.normal(colour, 25.0, (36, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{number}.png")
            records.append({"image": f"{name}{number}.png", "captions": [f"{name} cat", f"a photo of {name} cat"]})
        other = "blue" if name == "red" else "red"
        triplets.append({"reference": f"{name}0.png", "modifier": f"is {other}", "target": f"{other}1.png"})
        triplets.append({"reference": f"{name}2.png", "modifier": "", "target": f"{name}3.png"})
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    records.append({"image": "broken.png", "captions": ["nothing"]})
    _write_lines(folder / "captioned.jsonl", [json.dumps(record) for record in records])
    _write_lines(folder / "triplets.jsonl", [json.dumps(triplet) for triplet in triplets])
    _write_lines(folder / "phrases.txt", [f"{name} cat" for name in COLOURS])
    _write_lines(folder / "modifiers.txt", ["is red", "is blue"])
    return folder


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _distil(data: Path, folder: Path, foundation: Path, *more: str) -> DistilRun:
    """Write a configuration file as a user does, and read it."""
    text = f"""
    [run]
    out = {json.dumps(str(folder / "light"))}
    device = "cpu"
    epochs = 2
    save_every = 2
    log_every = 1
    [data]
    pictures = [{json.dumps(str(data / "captioned.jsonl"))}]
    workers = 0
    [foundation]
    name = {json.dumps(f"local-dir:{foundation}")}
    [student]
    backbone = "test_efficientnet"
    size = 32
    sentence_length = 3
    width = 32
    [texts]
    phrases = {json.dumps(str(data / "phrases.txt"))}
    modifiers = {json.dumps(str(data / "modifiers.txt"))}
    [distil]
    batch = 8
    lar_weight = 0.5
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "run.toml", text)  # two processes may do so at the same time
    return load_config(DistilRun, folder / "run.toml", more)


def test_a_foundation_is_aligned_from_a_sentence_encoder_and_can_be_moved(
    data: Path, bert_folder: Path, tmp_path: Path
) -> None:
    text = copy_sentence_encoder(bert_folder, tmp_path / "sentence-encoder")
    out = tmp_path / "foundation"
    words = ["train", "foundation", str(data / "captioned.jsonl"), "--text", str(text), "--trunk", "test_efficientnet"]
    words += ["--size", "64", "--batch", "8", "--epochs", "12", "--out", str(out), "--device", "cpu"]
    assert main([*words, "--set", "data.workers=0", "run.log_every=1", "run.chunks=2"]) == 0
    lines = read_log(tmp_path / "foundation.work" / "foundation" / "log.jsonl")
    assert np.mean([line["contrast"] for line in lines[-4:]]) < np.mean([line["contrast"] for line in lines[:4]])
    moved = tmp_path / "elsewhere"
    shutil.move(out, moved)
    shutil.rmtree(tmp_path / "foundation.work")
    foundation = load_foundation(f"local-dir:{moved}")
    assert foundation.word_width == foundation.embedding_width == WORD_WIDTH
    # The text tower is locked: its words are the sentence encoder's own.
    from transformers import BertModel

    table = BertModel.from_pretrained(text).get_input_embeddings().weight
    torch.testing.assert_close(foundation.word_embedding_table(), table)


def test_pictures_of_one_concept_are_one_class(data: Path, bert_folder: Path, tmp_path: Path) -> None:
    foundation = load_foundation(f"local-dir:{bert_folder}")
    records: list[dict[str, Any]] = [
        {"captions": ["cat", "red cat"]},
        {"captions": ["cat", "red cat", "cat"], "concept": "a"},
        {"captions": ["dog"]},
        {"captions": ["cat"], "concept": "b"},
        {"captions": ["cat", "dog"], "concept": "a"},
        {"captions": ["cat", "red cat"]},
    ]
    names = ("red0", "red1", "red2", "red3", "blue0", "blue1")
    lines = [json.dumps({"image": str(data / f"{name}.png"), **row}) for name, row in zip(names, records, strict=True)]
    _write_lines(tmp_path / "list.jsonl", lines)
    pictures = open_pictures([tmp_path / "list.jsonl"])
    labels, wordings = embed_captions(pictures, np.arange(6), lambda texts: embed_texts(foundation, texts))
    assert labels.tolist() == [0, 1, 2, 3, 1, 0]
    assert np.diff(wordings.starts).tolist() == [2, 4, 1, 1]  # "a" is called what any of its pictures is
    expected = embed_texts(foundation, ["cat", "red cat", "cat", "red cat", "cat", "dog", "dog", "cat"])
    torch.testing.assert_close(torch.as_tensor(wordings.embeddings), expected)


def test_distillation_validates_averages_and_saves_what_it_validated(
    data: Path, clip_folder: Path, tmp_path: Path
) -> None:
    more = ["run.ema=0.5", "run.chunks=2", "run.validate_every=2", f"validation.triplets={data / 'triplets.jsonl'}"]
    config = _distil(data, tmp_path, clip_folder, *more)
    light, metadata = load_light_encoder(train_distil(config))
    assert (
        light.sentence_length == 3
        and metadata["word_space"] == load_foundation(f"local-dir:{clip_folder}").word_space()
    )
    lines = read_log(config.run.work_folder / "distil" / "log.jsonl")
    measured = [line["validation"] for line in lines if "validation" in line]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 4 and len(measured) == 2 and all(set(found) == VALIDATED for found in measured)
    assert all({"token_cosine", "centred_rank"} <= line.keys() for line in steps)
    assert {"gcd", "lar", "identity", "consistency", "norm"} <= steps[0].keys()
    quarantine = [path.read_text() for path in config.run.work_folder.rglob("quarantine.jsonl")]
    assert ["broken.png" in text for text in quarantine if text] == [True]  # the validation's own is empty
    assert (config.run.work_folder / "distil" / "curves.png").stat().st_size > 1000


def test_validation_leaves_out_what_cannot_be_read(
    data: Path, clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [
        {"reference": "broken.png", "modifier": "is red", "target": "red1.png"},
        {"reference": "red1.png", "modifier": "is nothing", "target": "broken.png"},
    ]
    lines = [json.dumps(triplet) for triplet in broken]
    for name, some in (("some", (data / "triplets.jsonl").read_text().splitlines()), ("none", [])):
        _write_lines(tmp_path / f"{name}.jsonl", lines + some)
    images = f"validation.images={data}"
    with caplog.at_level("INFO"):
        train_distil(_distil(data, tmp_path, clip_folder, f"validation.triplets={tmp_path / 'some.jsonl'}", images))
    assert "2 triplets left out" in caplog.text
    assert "validation: 8 queries in a gallery of 14" in caplog.text
    with pytest.raises(DataError, match="none of 2 triplets to validate on"):
        more = [f"validation.triplets={tmp_path / 'none.jsonl'}", f"run.out={tmp_path / 'other'}"]
        train_distil(_distil(data, tmp_path, clip_folder, *more, images))


def test_a_changed_configuration_is_refused_by_key_and_accepted_when_told(
    data: Path, clip_folder: Path, tmp_path: Path
) -> None:
    train_distil(_distil(data, tmp_path, clip_folder))
    with pytest.raises(CheckpointError, match=r"config\.scale.*20.*30"):
        train_distil(_distil(data, tmp_path, clip_folder, "distil.scale=30.0"))
    train_distil(_distil(data, tmp_path, clip_folder, "distil.scale=30.0", "run.allow_changes=true", "run.epochs=3"))


def test_the_symmetric_encoder_and_transagg_train_and_evaluate(
    data: Path, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    symmetric = train_distil(_distil(data, tmp_path, clip_folder, "student.symmetric=true"))
    assert load_symmetric_encoder(symmetric)[0].word_width == WORD_WIDTH
    words = ["train", "union", str(data / "triplets.jsonl"), "--foundation", f"local-dir:{clip_folder}"]
    words += ["--device", "cpu", "--epochs", "1", "--set", "workers=0"]
    assert main([*words, "union.batch=4", "--light", str(symmetric), "--out", str(tmp_path / "union")]) == 0
    assert load_union_head(tmp_path / "union")[0].embedding_width == EMBEDDING_WIDTH
    system = ["triplets.system=transagg", "transagg.target=sum", "transagg.batch=4"]
    assert main([*words, *system, "--out", str(tmp_path / "transagg")]) == 0
    _, metadata = load_transagg(tmp_path / "transagg")
    assert metadata["target"] == "sum"
    assert "transagg" in capsys.readouterr().out


def test_blips_matching_encoder_says_what_lar_is(data: Path, tmp_path: Path) -> None:
    blip = write_blip(tmp_path / "blip")
    more = [f"foundation.name=blip:{blip}", "distil.lar=matching", "distil.gcd_weight=0.0", "run.epochs=10.0"]
    off = ["distil.consistency_weight=0.0", "distil.identity_weight=0.0", "distil.lar_weight=1.0"]
    config = _distil(data, tmp_path, blip, *more, *off, "distil.token_learner_lr=0.01")
    train_distil(config)
    found = [line["lar"] for line in read_log(config.run.work_folder / "distil" / "log.jsonl")]
    assert len(found) == 20 and np.mean(found[-4:]) < np.mean(found[:4])


def test_what_is_asked_for_and_not_there_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["train", "distil", str(data), "--out", str(tmp_path / "o"), "--work", str(tmp_path / "w")]
    cases = {
        "unknown architecture 'ViT-L-41'; nearest: ViT-L-16, ViT-L-14": ["--foundation", "ViT-L-41"],
        "unknown key distil.scal; did you mean distil.scale?": ["--foundation", "x", "--set", "distil.scal=1"],
        "foundation.name is missing: pass --foundation": [],
    }
    for expected, words in cases.items():
        assert main([*base, *words]) == 1
        error = capsys.readouterr().err
        assert expected in error and len(error.strip().splitlines()) == 1, error


def test_what_is_missing_is_named_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "run.out is missing: pass --out": ["distil", str(tmp_path), "--foundation", "x"],
        "data.pictures is missing: pass PICTURES": ["distil", "--out", "o", "--foundation", "x"],
        "triplets.path is missing: pass TRIPLETS": ["union", "--out", "o", "--foundation", "x", "--light", "l"],
        "triplets.light (--light) is missing": ["union", "t", "--out", "o", "--foundation", "x"],
    }
    for expected, words in cases.items():
        assert main(["train", *words]) == 1
        error = capsys.readouterr().err
        assert expected in error and len(error.strip().splitlines()) == 1, error


def test_a_configuration_is_kept_with_the_state_that_depends_on_it(
    data: Path, clip_folder: Path, tmp_path: Path
) -> None:
    # A first attempt fails, the second is the one that has states, the third is refused and changes nothing.
    work = tmp_path / "light.work"
    with pytest.raises(DataError, match="cannot read"):
        train_distil(_distil(data, tmp_path, clip_folder, "texts.phrases=nowhere.txt", "distil.scale=5.0"))
    kept = work / "distil" / "config.json"
    assert json.loads(kept.read_text())["distil"]["scale"] == 5.0
    train_distil(_distil(data, tmp_path, clip_folder))
    assert json.loads(kept.read_text())["distil"]["scale"] == 20.0
    with pytest.raises(CheckpointError, match=r"config\.scale"):
        train_distil(_distil(data, tmp_path, clip_folder, "distil.scale=30.0"))
    assert json.loads(kept.read_text())["distil"]["scale"] == 20.0
    # Another stage in the same work folder has its own.
    words = ["train", "union", str(data / "triplets.jsonl"), "--foundation", f"local-dir:{clip_folder}"]
    words += ["--light", str(tmp_path / "light"), "--out", str(tmp_path / "union"), "--work", str(work)]
    assert main([*words, "--device", "cpu", "--epochs", "1", "--batch", "4", "--set", "workers=0"]) == 0
    assert json.loads((work / "union" / "config.json").read_text())["union"]["batch"] == 4
    assert json.loads(kept.read_text())["distil"]["scale"] == 20.0 and not (work / "config.json").exists()


def _union_words(data: Path, clip: Path, folder: Path, light: Path, *more: str) -> list[str]:
    words = ["train", "union", str(data / "triplets.jsonl"), "--foundation", f"local-dir:{clip}", "--light", str(light)]
    words += ["--out", str(folder / "union"), "--device", "cpu", "--batch", "2", "--set", "workers=0"]
    return [*words, f"cache={folder / 'cache'}", "run.log_every=1", *more]


def test_union_validates_keeps_the_best_and_makes_no_query_twice(
    data: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    light = train_distil(_distil(data, tmp_path, clip_folder, "run.epochs=0.5"))
    composed: list[str] = []
    compose = union_stage.compose_triplets

    def count(encoder: Any, foundation: Any, references: Any, modifiers: Any, **options: Any) -> Any:
        composed.extend(modifiers)
        return compose(encoder, foundation, references, modifiers, **options)

    monkeypatch.setattr(union_stage, "compose_triplets", count)
    with caplog.at_level("INFO"):
        assert main(_union_words(data, clip_folder, tmp_path, light, "triplets.held_out=0.25")) == 0
    assert "6 triplets to train on, 2 to validate on" in caplog.text and len(composed) == 8
    lines = read_log(tmp_path / "union.work" / "union" / "log.jsonl")
    measured = [line["validation"] for line in lines if "validation" in line]
    assert len(measured) == 2  # two epochs, each of three steps
    assert len([line for line in lines if "contrast" in line]) == 6
    assert list((tmp_path / "union.work" / "union" / "best").glob("step-*"))
    # Another run, another list: what was composed is there.
    own = [f"validation.triplets={data / 'triplets.jsonl'}", f"validation.gallery=['{data}']"]
    assert main(_union_words(data, clip_folder, tmp_path, light, *own, f"run.out={tmp_path / 'second'}")) == 0
    assert len(composed) == 8
    assert load_union_head(tmp_path / "second")[0].embedding_width == EMBEDDING_WIDTH
    # Another encoder asks anew.
    other = train_distil(_distil(data, tmp_path / "other", clip_folder, "run.epochs=0.5", "run.seed=5"))
    assert main(_union_words(data, clip_folder, tmp_path, other, f"run.out={tmp_path / 'third'}")) == 0
    assert len(composed) == 16


def test_transagg_validates_too(data: Path, clip_folder: Path, tmp_path: Path) -> None:
    words = ["train", "union", str(data / "triplets.jsonl"), "--foundation", f"local-dir:{clip_folder}"]
    words += ["--out", str(tmp_path / "t"), "--device", "cpu", "--set", "workers=0", "triplets.held_out=0.25"]
    assert main([*words, "triplets.system=transagg", "transagg.batch=2", "run.epochs=1"]) == 0
    lines = read_log(tmp_path / "t.work" / "transagg" / "log.jsonl")
    assert [set(line["validation"]) for line in lines if "validation" in line] == [{"R@1", "R@5", "R@10"}]


def test_held_out_triplets_share_no_reference_with_the_others() -> None:
    references = np.repeat(np.arange(20), 3)
    held = union_stage._hold_out(references, 0.2, seed=0)
    assert held.sum() == 12 and not set(references[held]) & set(references[~held])
    assert (union_stage._hold_out(references, 0.2, seed=0) == held).all()
    assert (union_stage._hold_out(references, 0.2, seed=1) != held).any()
    assert not union_stage._hold_out(references[:2], 0.05, seed=0).any()
    # A reference with more triplets than the share is passed over, not the end of the draw.
    uneven = np.concatenate([np.zeros(30, np.int64), np.arange(1, 71)])
    assert {int(union_stage._hold_out(uneven, 0.05, seed=seed).sum()) for seed in range(5)} == {5}


def test_a_modifier_that_does_not_fit_is_refused_before_the_cache(
    data: Path, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    light = train_distil(_distil(data, tmp_path / "light", clip_folder, "run.epochs=0.5"))
    long = "is red " * 40
    lines = [*(data / "triplets.jsonl").read_text().splitlines()[:2]]
    lines.append(json.dumps({"reference": "red0.png", "modifier": long, "target": "red1.png"}))
    _write_lines(tmp_path / "long.jsonl", lines)
    union = ["train", "union", str(tmp_path / "long.jsonl"), "--images", str(data), "--out", str(tmp_path / "u")]
    union += ["--foundation", f"local-dir:{clip_folder}", "--light", str(light), "--device", "cpu"]
    assert main(union) == 1
    error = capsys.readouterr().err
    foundation = load_foundation(f"local-dir:{clip_folder}")
    assert f"{tmp_path / 'long.jsonl'}:3: the modifier takes " in error and "3 are sentence tokens" in error, error
    assert f"of the text encoder's {foundation.context_length}" in error
    assert not list(tmp_path.glob("u.work/teacher/*"))
    _write_lines(tmp_path / "modifiers.txt", ["is red", "", long])
    with pytest.raises(DataError, match=r"modifiers\.txt:3: the modifier takes 80 tokens and"):
        train_distil(_distil(data, tmp_path / "d", clip_folder, f"texts.modifiers={tmp_path / 'modifiers.txt'}"))
    more = [f"validation.triplets={tmp_path / 'long.jsonl'}", f"validation.images={data}"]
    with pytest.raises(DataError, match=r"long\.jsonl:3: the modifier takes"):
        train_distil(_distil(data, tmp_path / "d", clip_folder, *more))
    assert not list((tmp_path / "d").glob("light.work/teacher/*"))


def test_captions_are_embedded_once_and_a_second_run_embeds_none(
    data: Path, bert_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = copy_sentence_encoder(bert_folder, tmp_path / "sentence-encoder")
    words = ["train", "foundation", str(data / "captioned.jsonl"), "--text", str(text), "--trunk", "test_efficientnet"]
    words += ["--size", "32", "--batch", "8", "--epochs", "0.5", "--device", "cpu", "--set", "data.workers=0"]
    words += [f"data.cache={tmp_path / 'cache'}"]
    with caplog.at_level("INFO"):
        assert main([*words, "--out", str(tmp_path / "a")]) == 0
        assert "8 differ and 8 are new" in caplog.text
        caplog.clear()
        assert main([*words, "run.seed=1", "--out", str(tmp_path / "b")]) == 0
    assert "are new" not in caplog.text


def test_a_result_replaces_nothing_but_an_earlier_one(data: Path, clip_folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "light" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(CheckpointError, match=r"no earlier result.*checkpoint\.json"):
        train_distil(_distil(data, tmp_path, clip_folder))
    assert precious.read_text() == "mine" and not list(tmp_path.glob("light.work/teacher/*"))  # before anything is done
    for more in (["run.out=."], [f"run.work={tmp_path / 'light' / 'work'}"]):
        with pytest.raises(ConfigError, match="folder of its own and work outside it"):
            _distil(data, tmp_path, clip_folder, *more)


def test_another_start_is_another_foundation(data: Path, bert_folder: Path, tmp_path: Path) -> None:
    text = copy_sentence_encoder(bert_folder, tmp_path / "sentence-encoder")
    words = ["train", "foundation", str(data / "captioned.jsonl"), "--text", str(text), "--trunk", "test_efficientnet"]
    words += ["--batch", "8", "--epochs", "0.5", "--out", str(tmp_path / "f"), "--device", "cpu", "--set"]
    assert main([*words, "data.workers=0", "start.size=32"]) == 0
    assert main([*words, "data.workers=0", "start.size=64", "run.allow_changes=true"]) == 0
    assert load_foundation(f"local-dir:{tmp_path / 'f'}").preprocessing.size == 64


def test_too_small_parts_for_matching_are_refused_before_the_cache(data: Path, tmp_path: Path) -> None:
    blip = write_blip(tmp_path / "blip")
    more = [f"foundation.name=blip:{blip}", "distil.lar=matching", "run.chunks=8"]
    with pytest.raises(DataError, match="fewer chunks"):
        train_distil(_distil(data, tmp_path, blip, *more))
    clip_matching = ["distil.lar=matching"]
    with pytest.raises(FoundationError, match="no matching encoder"):
        train_distil(_distil(data, tmp_path / "clip", write_clip(tmp_path / "c"), *clip_matching))
    assert not list((tmp_path / "clip").glob("light.work/teacher/*"))


WITHOUT_BATCH_NORMS = ("student.backbone=test_vit",)


def distil_here(processes: Processes, folder: Path) -> dict[str, Any]:
    """Distil in this process and return the student's weights."""
    inputs = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    config = _distil(Path(inputs["data"]), folder / f"run-{processes.world}", Path(inputs["clip"]), *inputs["more"])
    return load_light_encoder(train_distil(config))[0].state_dict()


def test_two_processes_train_the_weights_that_one_does(data: Path, clip_folder: Path, tmp_path: Path) -> None:
    inputs = {
        "data": str(data),
        "clip": str(clip_folder),
        "more": [*WITHOUT_BATCH_NORMS, "distil.batch=4", "run.epochs=0.75"],
    }
    (tmp_path / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    alone = distil_here(Processes(), tmp_path)
    first, second = run_in_two_processes(__file__, "distil_here", tmp_path)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], second[name], rtol=0.0, atol=0.0)
        torch.testing.assert_close(first[name], value, rtol=2e-3, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}")


def refuse_here(processes: Processes, folder: Path) -> str:
    """Distil a backbone with batch norms in this process and return what that gives."""
    try:
        distil_here(processes, folder)
    except ConfigError as exc:
        return str(exc)
    return ""


def test_batch_norms_on_two_cpu_processes_are_refused_before_the_cache(
    data: Path, clip_folder: Path, tmp_path: Path
) -> None:
    inputs = {"data": str(data), "clip": str(clip_folder), "more": ["distil.frozen=['blocks', 'bn2']"]}
    (tmp_path / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    for message in run_in_two_processes(__file__, "refuse_here", tmp_path):
        assert "this LightEncoder (backbone.bn1) would train with the statistics of one of 2 CPU processes" in message
    assert not list(tmp_path.glob("run-2/light.work/teacher/*"))

"""Distillation's options: LAR, frozen stages, mixed styles, the draw of pseudo-captions."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asymcir_common import Preprocessing
from asymcir_training import CheckpointError, DataError, Foundation, LightEncoder, load_foundation
from asymcir_training.batches.views import Augmentation
from asymcir_training.pictures.sets import PictureSet
from asymcir_training.runs.settings import LoopConfig, RunSummary
from asymcir_training.teacher.cache import TeacherCache, build_teacher_cache
from asymcir_training.trainers.distil import DistilConfig, distil, nearest_phrases
from tiny_foundations import WORD_WIDTH
from tiny_pictures import write_pictures
from torch import Tensor
from torch.nn import functional

SPEC = Preprocessing(size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
STILL = Augmentation(scale=(1.0, 1.0), shift=0.0, rotation_degrees=0.0, brightness=0.0)
LOCAL = DistilConfig(
    batch=8,
    backbone_lr=3e-3,
    token_learner_lr=5e-3,
    gcd_weight=0.0,
    similarity_weight=0.0,
    redundancy_weight=0.0,
    token_dropout=0.0,
    lar_weight=1.0,
    identity_weight=0.0,
    consistency_weight=0.0,
    augmentation=STILL,
)
EVERYTHING = dataclasses.replace(
    LOCAL,
    gcd_weight=1.0,
    similarity_weight=1.0,
    redundancy_weight=1.0,
    token_dropout=0.5,
    identity_weight=0.5,
    consistency_weight=1.0,
    nearest=3,
    phrase_scale=5.0,
    frozen=("conv_stem", "bn1"),
    mix_after=("blocks.0",),
    mix_share=0.5,
    augmentation=Augmentation(),
)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Foundation:
    return load_foundation(f"local-dir:{clip_folder}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> PictureSet:
    coarse = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    return write_pictures(tmp_path_factory.mktemp("pictures"), coarse.repeat(8, axis=1).repeat(8, axis=2))


@pytest.fixture(scope="module")
def teacher(clip: Foundation, pictures: PictureSet, tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    return build_teacher_cache(tmp_path_factory.mktemp("teacher"), clip, pictures, patches=True)


def _student() -> LightEncoder:
    torch.manual_seed(0)
    return LightEncoder("test_efficientnet", sentence_length=3, word_width=WORD_WIDTH, width=32, preprocessing=SPEC)


@pytest.fixture(scope="module")
def run(clip: Foundation, pictures: PictureSet, teacher: TeacherCache) -> Callable[..., RunSummary]:
    """Distils a student from the pictures with everything that any loss needs."""
    inputs: dict[str, Any] = {
        "pictures": pictures,
        "kept": teacher.kept,
        "teacher": teacher.embedding,
        "patches": teacher.patches,
        "phrases": ["cat", "dog", "red cat", "blue dog"],
        "modifiers": ["is blue", "is red"],
    }

    def distil_with(student: LightEncoder, config: DistilConfig, loop: LoopConfig, **changes: Any) -> RunSummary:
        return distil(student, clip, **(inputs | changes), config=config, loop=loop)

    return distil_with


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_local_alignment_alone_is_learnt_and_logged(run: Callable[..., RunSummary], tmp_path: Path) -> None:
    run(_student(), LOCAL, LoopConfig(folder=tmp_path, steps=40, log_every=1))
    lines = _log(tmp_path)
    others = {"gcd", "similarity", "redundancy", "identity", "consistency"}
    assert all("lar" in line and not others & line.keys() for line in lines)
    first, last = (np.mean([line["lar"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert last < first - 0.1


def test_every_loss_that_is_on_is_logged_and_frozen_stages_stay(run: Callable[..., RunSummary], tmp_path: Path) -> None:
    student = _student()
    before = {name: value.clone() for name, value in student.backbone.state_dict().items()}
    run(student, EVERYTHING, LoopConfig(folder=tmp_path, steps=2, log_every=1))
    names = {"gcd", "similarity", "redundancy", "lar", "identity", "consistency", "norm"}
    assert all(names <= line.keys() for line in _log(tmp_path))
    after = student.backbone.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith(("conv_stem.", "bn1.")))
    for name in ("blocks.1.0.conv_exp.weight", "conv_head.weight", "bn2.running_mean"):
        assert not torch.equal(after[name], before[name]), name


def test_the_redundancy_of_tokens_falls_where_it_has_a_weight(run: Callable[..., RunSummary], tmp_path: Path) -> None:
    found = {}
    for weight in (0.01, 3.0):
        config = dataclasses.replace(LOCAL, lar_weight=0.0, gcd_weight=1.0, redundancy_weight=weight)
        run(_student(), config, LoopConfig(folder=tmp_path / str(weight), steps=40, log_every=1))
        found[weight] = np.mean([line["redundancy"] for line in _log(tmp_path / str(weight))[-5:]])
    assert found[3.0] < 0.5 * found[0.01]


def test_with_token_dropout_the_text_encoder_reads_sentences_of_every_length(
    run: Callable[..., RunSummary], clip: Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    compose = clip.compose_with_tokens

    def compose_and_note(tokens: Tensor, modifiers: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        lengths.append(tokens.shape[1])
        return compose(tokens, modifiers)

    monkeypatch.setattr(clip, "compose_with_tokens", compose_and_note)
    for share in (0.0, 1.0):
        lengths.clear()
        config = dataclasses.replace(LOCAL, token_dropout=share)
        run(_student(), config, LoopConfig(folder=tmp_path / str(share), steps=16))
        assert set(lengths) == ({3} if share == 0.0 else {1, 2, 3})


def test_tokens_are_compared_in_the_steps_that_are_logged_without_another_pass(
    run: Callable[..., RunSummary], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = _student()
    with torch.no_grad():  # one word, whatever is learnt in four steps
        student.token_learner.word_means.add_(1000.0)
    calls: list[int] = []
    student.register_forward_pre_hook(lambda *_: calls.append(1))
    run(student, LOCAL, LoopConfig(folder=tmp_path, steps=4, log_every=2))
    lines = _log(tmp_path)
    assert len(calls) == 4 and [line["step"] for line in lines] == [2, 4]
    assert all(line["token_cosine"] > 0.999 and 0.0 < line["centred_rank"] <= 3.0 for line in lines)
    assert "at the end of the run, the 3 tokens of a picture are nearly one" in caplog.text


def test_an_interrupted_distillation_with_everything_on_goes_on_exactly(
    run: Callable[..., RunSummary], tmp_path: Path
) -> None:
    whole, cut, again = _student(), _student(), _student()
    run(whole, EVERYTHING, LoopConfig(folder=tmp_path / "whole", steps=4, save_every=2))
    loop = LoopConfig(folder=tmp_path / "cut", steps=4, save_every=2)
    calls: list[int] = []

    def interrupt(*_: object) -> None:
        calls.append(len(calls))
        if len(calls) == 4:
            raise KeyboardInterrupt

    cut.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(cut, EVERYTHING, loop)
    again.register_forward_pre_hook(interrupt)
    run(again, EVERYTHING, loop)
    assert len(calls) == 4 + 2  # from the state after two steps
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_other_patches_make_another_run(run: Callable[..., RunSummary], teacher: TeacherCache, tmp_path: Path) -> None:
    loop = LoopConfig(folder=tmp_path, steps=1)
    run(_student(), LOCAL, loop)
    with pytest.raises(CheckpointError, match="differs in teacher"):
        run(_student(), LOCAL, loop, patches=np.flip(teacher.patches, 0).copy())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patches": None}, "LAR needs the teacher's patch features"),
        ({"phrases": []}, "need a text bank"),
        ({"modifiers": []}, "needs modifiers"),
    ],
)
def test_a_loss_without_what_it_needs_is_refused(
    run: Callable[..., RunSummary], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        run(_student(), EVERYTHING, LoopConfig(folder=tmp_path, steps=1), **changes)


def test_nearest_phrases_come_nearest_first_with_shares_by_their_cosines() -> None:
    torch.manual_seed(0)
    teacher, bank = 3.0 * torch.randn(5, 8), functional.normalize(torch.randn(7, 8), dim=-1)
    cosines = functional.normalize(teacher, dim=-1) @ bank.T
    order = cosines.argsort(dim=1, descending=True)[:, :4]

    def shares_at(scale: float) -> Tensor:
        indices, shares = nearest_phrases(teacher, bank, 4, scale)
        assert torch.equal(indices, order)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(5))
        return shares

    torch.testing.assert_close(shares_at(0.0), torch.full((5, 4), 0.25))
    torch.testing.assert_close(shares_at(2.0), (2.0 * cosines.gather(1, order)).softmax(dim=1))
    assert (shares_at(1e6)[:, 0] > 0.99).all()

"""The contrastive backward pass: many processes and many chunks against one process that sees the whole batch."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from asymcir_common import Preprocessing
from asymcir_training import Foundation, LightEncoder, load_foundation
from asymcir_training.engine.contrastive_step import chunk_rows, contrastive_backward
from asymcir_training.engine.precision import Precision
from asymcir_training.engine.processes import Processes
from asymcir_training.errors import DataError, TrainingError
from asymcir_training.models.mix_style import mixed_styles
from asymcir_training.trainers.losses import (
    composition_consistency,
    global_contrastive_distillation,
    local_alignment_regularization,
)
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH, write_clip
from torch import Tensor, nn
from torch.nn import functional
from two_processes import run_in_two_processes

CPU = torch.device("cpu")
ONE = Processes()
EXACT = Precision("fp32", CPU)
BATCH = 8
SPEC = Preprocessing(size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CHANGES = ["is red", "", "is blue", "has a dog", "is red", "of a cat", "", "is blue"]
BATCH_NORM, LAYER_NORM = "test_efficientnet", "test_vit"
# In float64, where only a wrong gradient is this far away; few values per channel condition batch norms badly.
APART = 1e-9


class Setting:
    """A student, a frozen text tower behind it, a learnt temperature, and the losses of the distillation.

    All in the type of the foundation's weights.
    """

    def __init__(
        self,
        foundation: Foundation,
        backbone: str,
        *,
        processes: Processes = ONE,
        drop: float = 0.0,
        frozen: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.foundation, self.processes = foundation, processes
        self.student = LightEncoder(
            backbone, sentence_length=3, word_width=WORD_WIDTH, width=32, preprocessing=SPEC
        ).train()
        self.student.token_learner.anchor_to_words(foundation.word_embedding_table())
        for part in self.student.modules():
            if isinstance(part, nn.Dropout):
                part.p = drop
        self.student.token_learner.self_attention.dropout = drop
        self.dtype = foundation.word_embedding_table().dtype
        self.student.to(self.dtype)
        if frozen:
            for part in self.student.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()
        self.temperature = nn.Module()
        self.temperature.scale = nn.Parameter(torch.tensor(10.0, dtype=self.dtype))
        self.pictures = torch.randn(BATCH, 3, 32, 32, dtype=self.dtype)
        self.teacher = torch.randn(BATCH, EMBEDDING_WIDTH, dtype=self.dtype)
        self.patches = torch.randn(BATCH, 4, EMBEDDING_WIDTH, dtype=self.dtype)
        self.described = torch.randn(BATCH, EMBEDDING_WIDTH, dtype=self.dtype)
        self.seen: list[tuple[bool, dict[str, Tensor]]] = []

    def represent(self, rows: Tensor) -> dict[str, Tensor]:
        tokens = self.student(self.pictures[rows])
        said, places = self.foundation.compose_with_tokens(tokens)
        found = {
            "said": said,
            "places": places,
            "composed": self.foundation.compose_query(tokens, [CHANGES[row] for row in rows.tolist()]),
            "identity": 1.0 - functional.cosine_similarity(said, self.teacher[rows], dim=-1),
            "rows": rows,
        }
        self.seen.append((torch.is_grad_enabled(), {name: value.detach() for name, value in found.items()}))
        return found

    def losses(self, found: Mapping[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
        assert found["rows"].tolist() == list(range(BATCH))  # the global batch, in its order
        assert all(value.dtype == self.dtype for name, value in found.items() if name != "rows")
        scale: Any = self.temperature.scale
        return {
            "gcd": (1.0, global_contrastive_distillation(found["said"], self.teacher, scale)),
            "lar": (0.5, local_alignment_regularization(found["places"], self.patches, 10.0)),
            "consistency": (1.0, composition_consistency(found["composed"], self.described, 10.0)),
            "identity": (0.7, found["identity"].mean()),
        }

    def run(self, *, chunks: int = 1, precision: Precision = EXACT) -> dict[str, Tensor]:
        """Return figures, gradients and buffers after one backward pass."""
        share = BATCH // self.processes.world
        own = torch.arange(BATCH)[self.processes.rank * share :][:share]
        torch.manual_seed(5)
        figures = contrastive_backward(
            self.represent,
            [own[rows] for rows in chunk_rows(BATCH, chunks=chunks, processes=self.processes)],
            self.losses,
            modules=[self.student, self.temperature],
            processes=self.processes,
            precision=precision,
        )
        gradients = {
            f"d {name}": value.grad.clone()
            for part in (self.student, self.temperature)
            for name, value in part.named_parameters()
            if value.grad is not None
        }
        return _tensors(figures) | gradients | {name: value.clone() for name, value in self.student.named_buffers()}


def _tensors(figures: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}


def _plain(setting: Setting) -> dict[str, Tensor]:
    """Compute the same by one ordinary backward pass over the whole batch."""
    found = setting.losses(setting.represent(torch.arange(BATCH)))
    loss = torch.stack([weight * value for weight, value in found.values()]).sum()
    loss.backward()
    gradients = {f"d {name}": value.grad for name, value in setting.student.named_parameters()}
    figures = {"loss": loss.detach()} | {name: value.detach() for name, (_, value) in found.items()}
    assert setting.temperature.scale.grad is not None
    buffers = dict(setting.student.named_buffers())
    return {**figures, **gradients, "d scale": setting.temperature.scale.grad, **buffers}  # type: ignore[dict-item]


def _assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, apart: float) -> None:
    """Check every entry to a share of its largest value, with an absolute floor."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        error = float((found[name] - wanted).abs().max()) if wanted.numel() else 0.0
        assert error <= apart * max(1.0, float(wanted.abs().max())), f"{name} is {error:.1e} away"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def foundation(folder: Path) -> Foundation:
    return load_foundation(f"local-dir:{folder}").double()


@pytest.fixture(scope="module")
def single(folder: Path) -> Foundation:
    return load_foundation(f"local-dir:{folder}")


def work(processes: Processes, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Run in each of two processes."""
    make = partial(Setting, load_foundation(f"local-dir:{folder}").double(), processes=processes)
    lower = Setting(load_foundation(f"local-dir:{folder}"), LAYER_NORM, processes=processes)
    dropping = make(LAYER_NORM, drop=0.3)
    found = {
        "frozen batch norm": make(BATCH_NORM, frozen=True).run(),
        "layer norm": make(LAYER_NORM).run(),
        "layer norm, 2 chunks": make(LAYER_NORM).run(chunks=2),
        "frozen batch norm, 2 chunks": make(BATCH_NORM, frozen=True).run(chunks=2),
        "dropout, 2 chunks": dropping.run(chunks=2),
        "bf16": lower.run(chunks=2, precision=Precision("bf16", CPU)),
    }
    found["said under dropout"] = {str(number): seen["said"] for number, (_, seen) in enumerate(dropping.seen)}
    return found


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, dict[str, Tensor]]]:
    return run_in_two_processes(__file__, "work", folder)


@pytest.mark.parametrize("backbone", [BATCH_NORM, LAYER_NORM])
def test_one_process_and_one_chunk_is_an_ordinary_backward_pass(foundation: Foundation, backbone: str) -> None:
    setting, plain = Setting(foundation, backbone), Setting(foundation, backbone)
    _assert_equal(setting.run(), _plain(plain), apart=APART)
    assert [grad for grad, _ in setting.seen] == [True]  # no second forward pass


@pytest.mark.parametrize(
    ("case", "backbone"),
    [
        ("frozen batch norm", BATCH_NORM),
        ("frozen batch norm, 2 chunks", BATCH_NORM),
        ("layer norm", LAYER_NORM),
        ("layer norm, 2 chunks", LAYER_NORM),
    ],
)
def test_two_processes_equal_one(
    two: list[dict[str, dict[str, Tensor]]], foundation: Foundation, case: str, backbone: str
) -> None:
    expected = _plain(Setting(foundation, backbone, frozen=backbone == BATCH_NORM))
    for found in two:
        _assert_equal(found[case], expected, apart=APART)


def test_two_processes_agree_to_the_last_bit(two: list[dict[str, dict[str, Tensor]]]) -> None:
    for case in two[0]:
        if case != "said under dropout":
            assert all(torch.equal(value, two[1][case][name]) for name, value in two[0][case].items()), case


@pytest.mark.parametrize("chunks", [2, 4, 8])
def test_chunks_equal_the_whole_batch(foundation: Foundation, chunks: int) -> None:
    setting = Setting(foundation, LAYER_NORM)
    _assert_equal(setting.run(chunks=chunks), _plain(Setting(foundation, LAYER_NORM)), apart=APART)
    assert [grad for grad, _ in setting.seen] == [False] * chunks + [True] * chunks


def test_the_second_forward_pass_draws_what_the_first_drew(foundation: Foundation) -> None:
    setting = Setting(foundation, BATCH_NORM, drop=0.3)
    with mixed_styles(setting.student.backbone, ("blocks.0",), 1.0):
        setting.run(chunks=4)
    answers = [seen["said"] for _, seen in setting.seen]
    assert all(torch.equal(first, second) for first, second in zip(answers[:4], answers[4:], strict=True))
    setting.pictures[:] = setting.pictures[0]
    setting.seen.clear()
    setting.run(chunks=4)
    assert not torch.equal(setting.seen[0][1]["said"], setting.seen[1][1]["said"])  # chunks draw differently
    setting.seen.clear()


def test_gradients_under_dropout_are_those_of_the_loss_that_is_returned(foundation: Foundation) -> None:
    setting = Setting(foundation, LAYER_NORM, drop=0.3)
    found = setting.run(chunks=4)
    weight = setting.student.token_learner.out[2].weight
    direction = found["d token_learner.out.2.weight"]
    start, around = weight.detach().clone(), []
    for step in (-1e-5, 1e-5):
        weight.data = start + step * direction / direction.norm()
        around.append(float(setting.run(chunks=4)["loss"]))
    slope = (around[1] - around[0]) / 2e-5
    assert abs(slope / float(direction.norm()) - 1.0) < 1e-6


def test_running_statistics_advance_once_per_chunk(foundation: Foundation) -> None:
    setting, by_hand = Setting(foundation, BATCH_NORM), Setting(foundation, BATCH_NORM)
    found = setting.run(chunks=4)
    with torch.no_grad():
        for start in range(0, BATCH, 2):
            by_hand.student(by_hand.pictures[start : start + 2])
    expected = dict(by_hand.student.named_buffers())
    assert int(expected["backbone.bn1.num_batches_tracked"]) == 4
    _assert_equal({name: found[name] for name in expected}, expected, apart=APART)


def test_two_processes_of_two_chunks_draw_as_one_process_of_four(
    two: list[dict[str, dict[str, Tensor]]], foundation: Foundation
) -> None:
    setting = Setting(foundation, LAYER_NORM, drop=0.3)
    _assert_equal(two[0]["dropout, 2 chunks"], setting.run(chunks=4), apart=APART)
    said = [found["said under dropout"][number] for found in two for number in ("0", "1")]
    torch.testing.assert_close(torch.cat(said), torch.cat([seen["said"] for _, seen in setting.seen[:4]]))


def test_the_losses_draw_as_if_nothing_was_drawn_before_them() -> None:
    linear, drawn = nn.Linear(3, 2), []

    def represent(rows: Tensor) -> dict[str, Tensor]:
        return {"y": linear(rows * torch.rand(1))}

    def losses(found: Mapping[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
        drawn.append(float(torch.rand(1)))
        return {"y": (1.0, found["y"].square().mean())}

    for rows in (torch.ones(4, 3).split(1), torch.ones(4, 3).split(4)):
        torch.manual_seed(0)
        contrastive_backward(represent, rows, losses, modules=[linear], processes=ONE, precision=EXACT)
    assert drawn[0] == drawn[1]


def test_bf16_is_close_on_one_process_and_on_two(two: list[dict[str, dict[str, Tensor]]], single: Foundation) -> None:
    exact, setting = _plain(Setting(single, LAYER_NORM)), Setting(single, LAYER_NORM)
    for found in (setting.run(precision=Precision("bf16", CPU)), two[0]["bf16"]):
        for name in ("loss", "gcd", "lar", "consistency", "identity"):
            assert 0 < abs(float(found[name]) - float(exact[name])) < 0.02 * float(exact[name]), name
        for name in ("d token_learner.out.2.weight", "d backbone.blocks.0.attn.qkv.weight"):
            cosine = functional.cosine_similarity(found[name].flatten(), exact[name].flatten(), dim=0)
            assert 0.98 < float(cosine) < 1.0 and found[name].dtype == torch.float32


@pytest.mark.parametrize("chunks", [1, 2])
def test_fp16_steps_and_skips_the_step_of_an_overflow(chunks: int) -> None:
    torch.manual_seed(0)
    linear, precision = nn.Linear(4, 3), Precision("fp16", CPU)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    x = torch.randn(4, 4)

    def step(factor: float) -> tuple[dict[str, float], Tensor]:
        optimizer.zero_grad(set_to_none=True)
        figures = contrastive_backward(
            lambda rows: {"y": linear(rows)},
            x.chunk(chunks),
            lambda found: {"y": (1.0, factor * found["y"].square().mean())},
            modules=[linear],
            processes=ONE,
            precision=precision,
        )
        before = linear.weight.detach().clone()
        figures |= precision.step(optimizer, linear.parameters(), clip_norm=100.0)
        return figures, linear.weight.detach() - before

    figures, change = step(1e-2)
    expected = torch.autograd.grad(1e-2 * linear(x).square().mean(), linear.weight)[0]
    assert figures["overflowed"] == 0.0 and figures["norm"] > 0.0
    torch.testing.assert_close(change, -0.1 * expected, rtol=0.02, atol=1e-5)
    figures, change = step(1e3)  # times the loss scale, past what fp16 can hold
    assert figures["overflowed"] == 1.0 and figures["loss_scale"] == 2.0**15 and figures["loss"] > 1.0
    assert (change == 0).all()


def test_chunks_hold_the_activations_of_one_chunk_at_a_time() -> None:
    model = timm.create_model("test_vit", num_classes=8, img_size=32)
    pictures = torch.randn(16, 3, 32, 32)

    def peak_bytes(chunks: int) -> int:
        held = {"now": 0, "peak": 0}

        class Kept:
            def __init__(self, value: Tensor) -> None:
                self.value, self.size_bytes = value, value.numel() * value.element_size()
                held["now"] += self.size_bytes
                held["peak"] = max(held["peak"], held["now"])

            def __del__(self) -> None:
                held["now"] -= self.size_bytes

        own: Callable[[Kept], Tensor] = lambda kept: kept.value  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(Kept, own):
            contrastive_backward(
                lambda rows: {"y": model(rows)},
                pictures.chunk(chunks),
                lambda found: {"y": (1.0, global_contrastive_distillation(found["y"], found["y"].roll(1, 0), 10.0))},
                modules=[model],
                processes=ONE,
                precision=EXACT,
            )
        assert held["now"] == 0
        return held["peak"] - sum(value.numel() * value.element_size() for value in model.parameters())

    whole, eighths = peak_bytes(1), peak_bytes(8)
    assert whole > 1_000_000 and eighths < whole / 4


def test_a_parameter_that_no_loss_reaches_stays_without_gradient(foundation: Foundation) -> None:
    setting = Setting(foundation, LAYER_NORM)
    setting.student.spare = nn.Linear(2, 2)
    setting.run(chunks=2)
    assert setting.student.spare.weight.grad is None


@pytest.mark.parametrize(("batch", "chunks", "world"), [(8, 3, 1), (8, 2, 3), (8, 8, 2), (0, 1, 1), (8, 0, 1)])
def test_a_batch_that_does_not_split_evenly_is_refused(batch: int, chunks: int, world: int) -> None:
    with pytest.raises(DataError, match=rf"{world} process\(es\) x {chunks} chunk\(s\).* got {batch}"):
        chunk_rows(batch, chunks=chunks, processes=Processes(world=world))


def test_chunks_of_each_process_cover_its_share() -> None:
    for rank in range(2):
        rows = chunk_rows(12, chunks=3, processes=Processes(rank=rank, world=2))
        assert rows == [slice(0, 2), slice(2, 4), slice(4, 6)]


def _fail(represent: Callable[[Tensor], dict[str, Tensor]], chunks: int, model: nn.Module) -> str:
    with pytest.raises(TrainingError) as caught:
        contrastive_backward(
            represent,
            torch.ones(4, 3).chunk(chunks),
            lambda found: {"y": (1.0, found["y"].square().mean())},
            modules=[model],
            processes=ONE,
            precision=EXACT,
        )
    return str(caught.value)


def test_representations_that_cannot_be_trained_are_refused() -> None:
    linear = nn.Linear(3, 2)
    assert "rows {'y': 0}" in _fail(lambda rows: {"y": linear(rows).sum()}, 2, linear)
    uneven = _fail(lambda rows: {"y": linear(rows), "z": rows[:1]}, 1, linear)
    assert "rows {'y': 4, 'z': 1}" in uneven
    assert "depend on nothing that is trained" in _fail(lambda rows: {"y": linear(rows).detach()}, 1, linear)
    assert "representations y has a gradient" in _fail(lambda rows: {"y": linear(rows).detach()}, 2, linear)


def test_draws_that_are_not_torchs_are_caught() -> None:
    linear, draws = nn.Linear(3, 2), np.random.default_rng(0)
    represent: Callable[[Tensor], dict[str, Tensor]] = lambda rows: {"y": linear(rows * float(draws.random()))}  # noqa: E731
    assert "another answer the second time" in _fail(represent, 2, linear)

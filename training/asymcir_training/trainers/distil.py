"""Distil the light encoder and its token learner from the frozen foundation, on unlabelled images.

GCD and LAR as the paper has them (LAR by a matching encoder, or in its form for CLIP-like models, which have none).
Beside them stand composition consistency and the redundancy of tokens (ours), and similarity distillation (SEED).
With token dropout a step sends a random number of the first tokens, so that a device can cut its sentences.

The teacher sees the clean picture, once, before training; the student sees an augmented view of it and must still say
what the teacher saw. That holds for every loss: an augmented view is a harder question with the same answer, and one
pass of the large tower serves all epochs.

Notation: n pictures, N of them to rank, b batch over all processes, L sentence tokens, D word-embedding width, E
joint-embedding width, P phrases, R patches.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from asymcir_training.batches.feeds import Feed, RowFeed
from asymcir_training.batches.views import Augmentation
from asymcir_training.engine.batch_norm import check_batch_norms
from asymcir_training.engine.execution import Execution, Rows, pick, sample_rows
from asymcir_training.engine.processes import Processes
from asymcir_training.engine.schedule import parameter_groups, seed_of_step
from asymcir_training.errors import DataError
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.model import Foundation
from asymcir_training.foundation.preprocessing import normalise_pixels
from asymcir_training.foundation.prompts import TOKENS_MODIFIER_PROMPT
from asymcir_training.models.light_encoder import LightEncoder
from asymcir_training.models.mix_style import freeze_stages, mixed_styles
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.pictures.sets import PictureSet
from asymcir_training.runs.loop import run_steps
from asymcir_training.runs.settings import LoopConfig, RunSummary
from asymcir_training.runs.token_log import TokenLog
from asymcir_training.teacher.in_memory import embed_phrases
from asymcir_training.trainers.losses import (
    composition_consistency,
    global_contrastive_distillation,
    local_alignment_regularization,
    similarity_distillation,
    token_redundancy,
)
from asymcir_training.trainers.matching_loss import draw_hard_negatives, local_alignment_by_matching
from asymcir_training.trainers.optimisation import Optimisation

_ROWS_AT_ONCE = 1024
_LEAST_TO_MATCH = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilConfig:
    """Learning rates, batch, loss weights and augmentation of the distillation."""

    batch: Annotated[int, "pictures of a step, over all processes"] = 96
    backbone_lr: float = 3e-4
    token_learner_lr: float = 1e-3
    weight_decay: float = 0.05
    scale: Annotated[float, "inverse temperature of the in-batch contrasts"] = 20.0
    gcd_weight: Annotated[float, "of global contrastive distillation; 0 turns a loss off"] = 1.0
    similarity_weight: Annotated[float, "of similarity distillation over the training pictures"] = 1.0
    similarity_scale: Annotated[float, "inverse temperature of similarity distillation"] = 40.0
    similarity_pictures: Annotated[int, "pictures that it ranks, at most, spread evenly over the training set"] = 16384
    redundancy_weight: Annotated[float, "of the redundancy of a picture's tokens"] = 1.0
    token_dropout: Annotated[float, "share of the steps whose sentences are cut to a random length"] = 0.5
    lar_weight: Annotated[float, "of local alignment regularization"] = 0.0
    lar: Annotated[
        Literal["late", "matching"], "late interaction with the teacher's patches, or BLIP's matching encoder"
    ] = "late"
    lar_group: Annotated[int, "pictures that late LAR contrasts with one another; 0: the batch"] = 0
    consistency_weight: Annotated[float, "of composition consistency; needs phrases and modifiers"] = 1.0
    identity_weight: Annotated[float, 'of the distance of text(tokens) to text("a photo of X")'] = 0.5
    nearest: Annotated[int, "the pseudo-caption X is drawn among this many nearest phrases"] = 1
    phrase_scale: Annotated[float, "inverse temperature of that draw; 0 draws evenly"] = 0.0
    clip_norm: Annotated[float, "longest gradient"] = 5.0
    frozen: Annotated[tuple[str, ...], "modules of the backbone that stay as they are"] = ()
    mix_after: Annotated[tuple[str, ...], "modules of the backbone after which styles are mixed"] = ()
    mix_share: Annotated[float, "share of the pictures whose style is mixed"] = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"expected a batch of 1 or more, got {self.batch}")
        if not 0.0 <= self.mix_share <= 1.0:
            raise DataError(f"expected mix_share from 0 to 1, got {self.mix_share}")
        if not 0.0 <= self.token_dropout <= 1.0:
            raise DataError(f"expected token_dropout from 0 to 1, got {self.token_dropout}")
        if self.similarity_pictures < 1:
            raise DataError(f"expected similarity_pictures of 1 or more, got {self.similarity_pictures}")
        if self.lar_group < 0 or (self.lar_group and self.batch % self.lar_group):
            raise DataError(f"expected lar_group to divide the batch of {self.batch}, got {self.lar_group}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What one forward pass takes.

    Attributes:
        inputs: augmented pixels [b_c, 3, S, S] uint8, or patches [b_c, R, E] for a symmetric encoder.
        modifiers: one for each.
        numbers: [b_c], the pictures.
        teacher: [b_c, E], the teacher's features of them.
        length: tokens of the sentence that are sent, the others are cut off.
    """

    inputs: Tensor
    modifiers: Sequence[str]
    numbers: NDArray[np.int64]
    teacher: Tensor
    length: int


def distil(
    student: LightEncoder | SymmetricEncoder,
    foundation: Foundation,
    *,
    pictures: PictureSet,
    kept: NDArray[np.int64],
    teacher: Rows,
    patches: Rows | None = None,
    phrases: Sequence[str],
    bank: Rows | None = None,
    modifiers: Sequence[str],
    config: DistilConfig,
    loop: LoopConfig,
    execution: Execution | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> RunSummary:
    """Train the student in place; with an average of the weights, or a validation, it ends as that or as the best.

    Args:
        student: its token learner should have been anchored to the word table. A symmetric one reads the patches
            instead of the pictures.
        foundation: frozen.
        pictures: where the pictures are.
        kept: [n], the numbers of those to train on.
        teacher: [n, E], the frozen visual tower's features of those pictures, of the clean view.
        patches: [n, R, E], its patch features of the same view, for LAR.
        phrases: the text bank that pseudo-captions come from.
        bank: [P, E], what the text tower says about them as "a photo of X"; without it they are embedded here.
        modifiers: the changes that composition consistency draws from.
        config, loop, execution: see their classes.
        validate: takes the encoder to measure, in eval mode; returns figures.

    Raises:
        DataError: a loss that is on lacks its phrases, modifiers or patches; or see `start_student`.
        ConfigError: see `start_student`.

    Source: ISA, arXiv:2403.01431, for GCD and LAR; composition consistency is ours.
    """
    execution = execution or Execution()
    device = execution.processes.device
    share = len(execution.split(min(config.batch, len(kept))))
    _check_inputs(
        config,
        phrases,
        modifiers,
        patches,
        symmetric=isinstance(student, SymmetricEncoder),
        least_part=min(config.batch, len(kept)) // (share * execution.processes.world),
    )
    if not phrases:
        named = torch.zeros(1, teacher.shape[1], device=device)
    elif bank is None:
        named = embed_phrases(foundation, phrases)
    else:
        named = pick(bank, np.arange(len(phrases)), device)
    bank_of_modifiers = [*modifiers] or [""]
    nearest, shares = nearest_phrases(teacher, named, min(config.nearest, len(named)), config.phrase_scale)
    others = _spread_teacher(teacher, config.similarity_pictures, device) if config.similarity_weight else None
    late = config.lar_weight > 0.0 and config.lar == "late"
    light = student if isinstance(student, LightEncoder) else None
    start_student(student, config, execution.processes)
    student.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rates: dict[nn.Module, float] = {student.token_learner: config.token_learner_lr}
    if light is not None:
        rates[light.backbone] = config.backbone_lr
    optimisation = Optimisation(
        student,
        parameter_groups(rates, weight_decay=config.weight_decay),
        execution=execution,
        clip_norm=config.clip_norm,
        steps=loop.steps,
    )
    feed: Feed | RowFeed
    if light is None:
        assert patches is not None
        feed = RowFeed(patches, seed=loop.seed, batch=config.batch, execution=execution)
    else:
        feed = Feed(
            pictures,
            kept,
            spec=student.preprocessing,
            augmentation=config.augmentation,
            seed=loop.seed,
            batch=config.batch,
            steps=loop.steps,
            execution=execution,
        )

    token_log = TokenLog(loop, execution.processes)

    def encode(inputs: Tensor) -> Tensor:
        if isinstance(student, SymmetricEncoder):
            return student.from_patches(inputs)
        pixels = normalise_pixels(inputs.to(device, non_blocking=True).permute(0, 2, 3, 1), student.preprocessing)
        return student(pixels.contiguous(memory_format=torch.channels_last))

    def represent(part: _Part) -> dict[str, Tensor]:
        whole = encode(part.inputs)  # [b_c, L, D]
        token_log.add(whole)
        tokens = whole[:, : part.length]
        said, places = foundation.compose_with_tokens(tokens)
        found = {"said": said}
        if config.redundancy_weight and whole.shape[1] > 1:
            found["tokens"] = whole
        if late:
            found["places"] = places
        elif config.lar_weight:
            found["matching"] = _match(foundation, tokens, said, pictures, part)
        if config.consistency_weight:
            found["composed"] = foundation.compose_query(tokens, part.modifiers)
        return found

    def step(number: int) -> dict[str, float]:
        batch = feed.take(number)
        draw = torch.Generator().manual_seed(seed_of_step(loop.seed, number))
        chosen = _draw_phrases(nearest[batch.whole], shares[batch.whole], draw)
        drawn = [bank_of_modifiers[i] for i in torch.randint(len(bank_of_modifiers), (len(chosen),), generator=draw)]
        length = _draw_length(student.sentence_length, config.token_dropout, draw)
        own = execution.own_rows(len(chosen))
        described = None
        if config.consistency_weight:
            pairs = zip(chosen[own], drawn[own], strict=True)
            texts = [TOKENS_MODIFIER_PROMPT.format(tokens=phrases[i], modifier=text) for i, text in pairs]
            described = execution.processes.gather(execution.encode_texts(foundation, texts))
        seen = pick(teacher, batch.whole, device)
        parts = [
            _Part(
                inputs=batch.pixels[part],
                modifiers=drawn[own][part],
                numbers=kept[batch.index[part]],
                teacher=seen[own][part],
                length=length,
            )
            for part in execution.split(len(batch.whole))
        ]
        targets = Targets(
            teacher=seen,
            patches=pick(patches, batch.whole, device) if patches is not None and late else None,
            others=others,
            named=named[chosen],
            described=described,
        )
        token_log.begin(number, chunks=len(parts))
        figures = optimisation.step(number, represent, parts, lambda said: sentence_losses(said, targets, config))
        return figures | token_log.figures() | {"waited_s": batch.waited_s}

    identity = {
        "trainer": "distil",
        "config": asdict(config),
        "execution": execution.identity(),
        "validation": {"best": loop.best, "queries": getattr(validate, "digest", "")},
        "student": student.config,
        "word_space": foundation.word_space(),
        "pictures": pictures.digest,
        "teacher": _digest_teacher(teacher, patches, phrases, modifiers),
        "start": digest(weights=student.state_dict(), facts={}),
    }
    mixing = nullcontext() if light is None else mixed_styles(light.backbone, config.mix_after, config.mix_share)
    with mixing:
        summary = run_steps(
            loop,
            identity=identity,
            parts={"student": student, **optimisation.parts()},
            step=step,
            prepare=feed.start if isinstance(feed, Feed) else None,
            describe=feed.describe if isinstance(feed, Feed) else None,
            validate=None if validate is None else lambda _: optimisation.measure(validate),
            best_parts={"model": optimisation.averaged},
            processes=execution.processes,
        )
    token_log.warn_of_one_word()
    optimisation.finish(loop, summary)
    return summary


def start_student(student: LightEncoder | SymmetricEncoder, config: DistilConfig, processes: Processes) -> None:
    """Put the student in training mode, its frozen stages left out, and check it; `distil` begins with this.

    Call it before the teacher's outputs are computed, so that an error comes before hours of work.

    Raises:
        DataError: a frozen stage that the backbone does not have.
        ConfigError: batch norms that would train on several CPU processes.
    """
    student.train()
    if isinstance(student, LightEncoder):
        freeze_stages(student.backbone, config.frozen)
    check_batch_norms(student, processes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What the sentences of a batch are held against.

    Attributes:
        teacher: [b, E], image features of the same pictures.
        patches: [b, R, E], or None without LAR.
        others: [N, E], L2-normalised, the pictures that similarity distillation ranks, or None without it.
        named: [b, E], text("a photo of X"), X the phrase that stands for each picture.
        described: [b, E], text features of X with the drawn modifier, or None without composition consistency.
    """

    teacher: Tensor
    patches: Tensor | None
    others: Tensor | None
    named: Tensor
    described: Tensor | None


def sentence_losses(
    said: Mapping[str, Tensor], targets: Targets, config: DistilConfig
) -> dict[str, tuple[float, Tensor]]:
    """Compute the losses of one batch of sentences.

    Args:
        said: `said` [b, E], text features of the sentences; `tokens` [b, L, D], whole sentences, for their redundancy;
            `places` [b, L, E], what the text tower made of each token, for LAR, or `matching` [b], LAR's terms from a
            matching encoder; `composed` [b, E], the sentences with their modifiers, for composition consistency.
        targets, config: see their classes.

    Returns:
        Name -> (weight, scalar), of the losses that are on.
    """
    found: dict[str, tuple[float, Tensor]] = {}
    if "matching" in said:
        found["lar"] = config.lar_weight, said["matching"].mean()
    if config.gcd_weight:
        found["gcd"] = config.gcd_weight, global_contrastive_distillation(said["said"], targets.teacher, config.scale)
    if config.similarity_weight and targets.others is not None:
        similarity = similarity_distillation(said["said"], targets.teacher, targets.others, config.similarity_scale)
        found["similarity"] = config.similarity_weight, similarity
    if "tokens" in said:
        found["redundancy"] = config.redundancy_weight, token_redundancy(said["tokens"])
    if "places" in said and targets.patches is not None:
        group = config.lar_group or len(targets.patches)
        terms = [
            local_alignment_regularization(places, patches.float(), config.scale)
            for places, patches in zip(said["places"].split(group), targets.patches.split(group), strict=True)
        ]
        found["lar"] = config.lar_weight, torch.stack(terms).mean()
    if config.identity_weight:
        distance = 1.0 - functional.cosine_similarity(said["said"], targets.named, dim=-1).mean()
        found["identity"] = config.identity_weight, distance
    if config.consistency_weight and targets.described is not None:
        consistency = composition_consistency(said["composed"], targets.described, config.scale)
        found["consistency"] = config.consistency_weight, consistency
    return found


@torch.no_grad()
def nearest_phrases(teacher: Rows, bank: Tensor, count: int, scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """Find the phrases nearest to each picture under the teacher.

    Args:
        teacher: [n, E], any length.
        bank: [P, E], L2-normalised.
        count: phrases per picture.
        scale: inverse temperature of their shares.

    Returns:
        Indices into the bank [n, count], nearest first, and their shares [n, count], which sum to 1; both on the CPU.
    """
    indices, values = [], []
    for start in range(0, len(teacher), _ROWS_AT_ONCE):
        index = np.arange(start, min(start + _ROWS_AT_ONCE, len(teacher)))
        part = functional.normalize(pick(teacher, index, bank.device).float(), dim=-1)
        found = (part @ bank.T).topk(count, dim=1)
        indices.append(found.indices.cpu())
        values.append(found.values.cpu())
    return torch.cat(indices), (scale * torch.cat(values)).softmax(dim=1)


def _match(foundation: Foundation, tokens: Tensor, said: Tensor, pictures: PictureSet, part: _Part) -> Tensor:
    """Compute LAR's terms by the matching encoder, [b_c]: it looks at the clean pictures, negatives come from the part.

    The large encoder's states are nearly a megabyte a picture, so they are computed anew and not cached.
    """
    spec = foundation.preprocessing
    pixels = torch.from_numpy(np.stack([pictures.decode(int(number), spec) for number in part.numbers]))
    with torch.no_grad():
        states = foundation.encode_image_states(foundation.normalise_pixels(pixels.to(tokens.device)))
    negatives = draw_hard_negatives(said, part.teacher)
    return local_alignment_by_matching(foundation, tokens, states, negatives)


def _spread_teacher(teacher: Rows, count: int, device: torch.device) -> Tensor:
    """Take rows spread evenly over the teacher's features: [N, E], L2-normalised, N of `count` at most."""
    index = np.linspace(0, len(teacher) - 1, min(count, len(teacher))).astype(np.int64)
    return functional.normalize(pick(teacher, index, device).float(), dim=-1)


def _draw_length(length: int, share: float, draw: torch.Generator) -> int:
    """Draw how many of the first tokens a step sends: all of them, or with `share` any number from 1."""
    cut = float(torch.rand(1, generator=draw)) < share
    return int(torch.randint(1, length + 1, (1,), generator=draw)) if cut else length


def _draw_phrases(nearest: Tensor, shares: Tensor, draw: torch.Generator) -> list[int]:
    """Draw one of the nearest phrases for each picture of a batch: [b, count] each -> b indices into the bank."""
    chosen: list[int] = nearest.gather(1, torch.multinomial(shares, 1, generator=draw))[:, 0].tolist()
    return chosen


def _digest_teacher(teacher: Rows, patches: Rows | None, phrases: Sequence[str], modifiers: Sequence[str]) -> str:
    """Name the teacher's answers and the texts; of a large file of them, an even sample of rows."""
    weights = {"features": sample_rows(teacher)}
    if patches is not None:
        weights["patches"] = sample_rows(patches)
    return digest(weights=weights, facts={"rows": len(teacher), "phrases": [*phrases], "modifiers": [*modifiers]})


def _check_inputs(
    config: DistilConfig,
    phrases: Sequence[str],
    modifiers: Sequence[str],
    patches: Rows | None,
    *,
    symmetric: bool,
    least_part: int,
) -> None:
    if not (
        config.gcd_weight
        or config.similarity_weight
        or config.lar_weight
        or config.consistency_weight
        or config.identity_weight
    ):
        raise DataError("every loss has weight 0: give at least one a weight")
    if (config.consistency_weight or config.identity_weight) and not phrases:
        raise DataError("composition consistency and identity need a text bank: give phrases, or set both weights to 0")
    if config.consistency_weight and not modifiers:
        raise DataError("composition consistency needs modifiers: give some, or set its weight to 0")
    if config.lar_weight and config.lar == "matching" and least_part < _LEAST_TO_MATCH:
        raise DataError(
            f"LAR by matching draws its negatives from the pictures of one part, and a part has {least_part}: ask for "
            "fewer chunks or processes, or a larger batch"
        )
    if symmetric and patches is None:
        raise DataError("a symmetric encoder reads the teacher's patch features: give them")
    if config.lar_weight and config.lar == "late" and patches is None:
        raise DataError("LAR needs the teacher's patch features: give them, or set its weight to 0")

"""`asymcir train union`: the UNION head, or TransAgg with its target, trained from triplets."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymcir_training.engine.execution import Execution
from asymcir_training.errors import DataError
from asymcir_training.foundation.model import Foundation, load_foundation
from asymcir_training.models.checkpoints import (
    SYMMETRIC_ENCODER,
    load_light_encoder,
    load_symmetric_encoder,
    read_kind,
    save_transagg,
    save_union_head,
)
from asymcir_training.models.light_encoder import LightEncoder
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.models.transagg import TransAgg
from asymcir_training.models.union_head import UnionHead
from asymcir_training.pictures.files import PictureFiles
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.stages.preparation import (
    check_word_space,
    describe_foundation,
    loop_of,
    main_first,
    open_teacher_cache,
    prepare,
)
from asymcir_training.stages.sections import (
    UnionRun,
)
from asymcir_training.teacher.cache import TeacherCache
from asymcir_training.teacher.queries import cache_queries
from asymcir_training.trainers.target_validation import FusionValidation, HeadValidation, TargetValidation
from asymcir_training.trainers.transagg import train_transagg
from asymcir_training.trainers.union import train_union_head
from asymcir_training.triplets.formats import read_triplets
from asymcir_training.triplets.modifiers import check_triplets
from asymcir_training.triplets.pictures import embed_modifiers, gather_gallery, number_concepts, number_pictures
from asymcir_training.triplets.triplet import PictureTriplet
from asymcir_training.triplets.validation import compose_triplets

_LOG = logging.getLogger(__name__)


def train_union(config: UnionRun) -> Path:
    """Train the UNION head, or TransAgg and its target, from triplets; returns the checkpoint.

    Raises:
        TrainingError: see the errors of the parts.
    """
    system = config.triplets.system
    stage = "union" if system == "light" else "transagg"
    execution = prepare(config.run, config, stage=stage, workers=config.workers)
    triplets, listed = _read_triplets(config)
    foundation = load_foundation(config.foundation.name, config.foundation.pretrained)
    foundation.to(execution.processes.device)
    encoder = _load_asking(config.triplets.light, foundation) if system == "light" else None
    # What can be wrong is found before the foundation looks at every picture.
    check_triplets(foundation, triplets, sentence_length=None if encoder is None else encoder.sentence_length)
    root = config.cache or config.run.work_folder / "teacher"
    asked = _open_triplets(config, triplets, listed, foundation, execution, root)
    torch.manual_seed(config.run.seed)
    head = UnionHead(foundation.embedding_width)
    if encoder is None:
        _train_transagg(config, asked, head, foundation, execution, root)
    else:
        _train_head(config, asked, head, encoder, foundation, execution, root)
    execution.processes.barrier()
    return config.run.out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """Triplets whose pictures can be read: t of them.

    Attributes:
        triplets: t, those to train on and those to measure.
        cache: the foundation's outputs for their pictures.
        paths: the pictures; those that ask are the first.
        asking: how many ask.
        references, targets: [t], int64, rows of the cache.
        training, measured: numbers of the triplets to train on and of those to measure; the latter may be none.
    """

    triplets: list[PictureTriplet]
    cache: TeacherCache
    paths: Sequence[Path]
    asking: int
    references: Tensor
    targets: Tensor
    training: NDArray[np.int64]
    measured: NDArray[np.int64]


def _read_triplets(config: UnionRun) -> tuple[list[PictureTriplet], int]:
    """Read the list, and after it the list to validate on; returns both as one, and how many are of the first."""
    section, validation = config.triplets, config.validation
    triplets = read_triplets(
        section.path,
        format=section.format,
        images=section.images,
        limit=section.limit or None,
        step=section.step or None,
        seed=config.run.seed if section.limit and not section.step else None,
    )
    if validation.triplets is None:
        return triplets, len(triplets)
    return [
        *triplets,
        *read_triplets(validation.triplets, format=validation.format, images=validation.images),
    ], len(triplets)


def _open_triplets(
    config: UnionRun,
    triplets: Sequence[PictureTriplet],
    listed: int,
    foundation: Foundation,
    execution: Execution,
    root: Path,
) -> _Asked:
    """Open the foundation's outputs for the triplets' pictures, and choose which triplets are measured."""
    numbered = number_pictures(triplets)
    pictures = PictureFiles(numbered.paths)
    cache = open_teacher_cache(root, foundation, pictures, execution, patches=False)
    rows = np.full(len(pictures), -1)
    rows[cache.kept] = np.arange(len(cache.kept))
    asks, answers = rows[numbered.references.numpy()], rows[numbered.targets.numpy()]
    usable = np.flatnonzero((asks >= 0) & (answers >= 0))
    own = usable < listed
    if not own.any():
        raise DataError(f"no triplet of {config.triplets.path} has two readable pictures")
    if len(usable) < len(triplets):
        _LOG.warning("%d triplets left out: their pictures cannot be read", len(triplets) - len(usable))
    measured = ~own
    if config.validation.triplets is None:
        measured = _hold_out(asks[usable], config.triplets.held_out, seed=config.run.seed)
    elif own.all():
        raise DataError(f"no triplet of {config.validation.triplets} has two readable pictures")
    _LOG.info("%d triplets to train on, %d to validate on", (~measured).sum(), measured.sum())
    return _Asked(
        triplets=[triplets[i] for i in usable.tolist()],
        cache=cache,
        paths=numbered.paths,
        asking=numbered.asking,
        references=torch.from_numpy(asks[usable]),
        targets=torch.from_numpy(answers[usable]),
        training=np.flatnonzero(~measured),
        measured=np.flatnonzero(measured),
    )


def _hold_out(references: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.bool_]:
    """Draw a share of triplets [t], all of a reference or none, so that no picture asks on both sides."""
    held = np.zeros(len(references), bool)
    for reference in np.random.default_rng(seed).permutation(np.unique(references)):
        more = held | (references == reference)
        if more.sum() <= share * len(references):
            held = more
    if share and not held.any():
        _LOG.warning("no reference has so few triplets that held_out=%s holds it: nothing is validated", share)
    return held


def _validation(
    config: UnionRun,
    asked: _Asked,
    foundation: Foundation,
    execution: Execution,
    root: Path,
    *,
    target: str,
) -> TargetValidation | None:
    """Make what measures the triplets that were put aside, in a gallery; None where there are none."""
    if not len(asked.measured):
        return None
    # Held-out triplets are searched among the pictures of the whole list, a list of their own among its pictures.
    alone = config.validation.triplets is not None
    pool = [asked.triplets[i] for i in asked.measured] if alone else asked.triplets
    gallery = gather_gallery(pool, config.validation.gallery)
    cache = open_teacher_cache(root, foundation, PictureFiles(gallery.paths), execution, patches=False)
    usable, found = gallery.restrict(cache.kept.tolist(), [True] * len(pool))
    assert len(usable) == len(pool)  # their pictures were read before
    places = range(len(pool)) if alone else asked.measured.tolist()
    return TargetValidation(
        image_features=cache.embedding,
        null_features=foundation.encode_null().detach(),
        answers=[found.answers[i] for i in places],
        excluded=[found.excluded[i] for i in places],
        target=target,
        device=execution.processes.device,
    )


def _train_head(
    config: UnionRun,
    asked: _Asked,
    head: UnionHead,
    encoder: LightEncoder | SymmetricEncoder,
    foundation: Foundation,
    execution: Execution,
    root: Path,
) -> None:
    """Train the head on the queries of an encoder, and save it."""
    encoder.to(execution.processes.device)
    modifiers = [triplet.modifier for triplet in asked.triplets]

    def compose(numbers: Sequence[int]) -> Iterator[Tensor]:
        return compose_triplets(
            encoder,
            foundation,
            [asked.triplets[i].reference for i in numbers],
            [modifiers[i] for i in numbers],
            workers=execution.workers,
        )

    queries = main_first(
        execution,
        lambda: cache_queries(
            root,
            encoder,
            foundation,
            identities=asked.cache.identities[asked.references.numpy()],
            modifiers=modifiers,
            compose=compose,
        ),
    )
    validation = _validation(config, asked, foundation, execution, root, target="union")
    validate = None
    if validation is not None:
        validate = HeadValidation(validation, torch.from_numpy(queries[asked.measured]))
    training = torch.from_numpy(asked.training)
    trained = [asked.triplets[i] for i in asked.training.tolist()]
    train_union_head(
        head,
        queries=torch.from_numpy(queries[asked.training]),
        image_features=asked.cache.embedding,
        null_features=foundation.encode_null().detach(),
        targets=asked.targets[training],
        answers=number_concepts(trained, asked.targets[training], pictures=len(asked.cache.kept)),
        config=config.union,
        loop=_loop(config, "union", rows=len(trained), batch=config.union.batch, validated=validate is not None),
        execution=execution,
        validate=validate,
    )
    if execution.processes.is_main:
        save_union_head(config.run.out, head, describe_foundation(foundation))


def _train_transagg(
    config: UnionRun, asked: _Asked, head: UnionHead, foundation: Foundation, execution: Execution, root: Path
) -> None:
    """Train the fusion, and the head where its target has one, and save them."""
    # Patches are large and only the pictures that ask need them; those come first in both sets.
    pictures = PictureFiles(asked.paths[: asked.asking])
    asking = open_teacher_cache(root, foundation, pictures, execution, patches=True)
    assert asking.patches is not None
    if not np.array_equal(asking.identities, asked.cache.identities[: len(asking.kept)]):
        raise DataError(
            "the pictures that ask are not the same in the teacher cache with patches and in the one without: a file "
            f"changed, or could not be read once. Make all of {config.triplets.path} readable, and start again"
        )
    device, target = execution.processes.device, config.transagg.target
    fusion = TransAgg(foundation.embedding_width).to(device)
    trained = head.to(device) if target == "union" else None
    text = embed_modifiers(foundation, [triplet.modifier for triplet in asked.triplets])
    features = torch.from_numpy(np.array(asked.cache.embedding))
    training, measured = torch.from_numpy(asked.training), torch.from_numpy(asked.measured)
    validation = _validation(config, asked, foundation, execution, root, target=target)
    validate = None
    if validation is not None:
        validate = FusionValidation(
            validation, features, asking.patches, text.pick(measured), asked.references[measured], device
        )
    train_transagg(
        fusion,
        trained,
        image_features=features,
        patches=asking.patches,
        text=text.pick(training),
        null_features=foundation.encode_null().detach(),
        references=asked.references[training],
        targets=asked.targets[training],
        config=config.transagg,
        loop=_loop(config, "transagg", rows=len(training), batch=config.transagg.batch, validated=validate is not None),
        execution=execution,
        validate=validate,
    )
    metadata = describe_foundation(foundation) | {"target": target}
    if trained is not None:
        metadata["target_space"] = foundation.target_spaces(trained)["union"]
    if execution.processes.is_main:
        save_transagg(config.run.out, fusion, metadata)
        if trained is not None:
            beside = config.run.out.with_name(f"{config.run.out.name}-union")
            save_union_head(beside, trained, metadata)
            _LOG.info("its UNION head: %s", beside)


def _loop(config: UnionRun, stage: str, *, rows: int, batch: int, validated: bool) -> LoopConfig:
    best = config.validation.best if validated else ""
    return loop_of(config.run, stage, rows=rows, batch=batch, best=best, every_epoch=validated)


def _load_asking(folder: Path | None, foundation: Foundation) -> LightEncoder | SymmetricEncoder:
    """Load the encoder that asks the triplets' queries."""
    assert folder is not None
    encoder: LightEncoder | SymmetricEncoder
    if read_kind(folder) == SYMMETRIC_ENCODER:
        encoder, metadata = load_symmetric_encoder(folder)
        encoder.attach(foundation)
    else:
        encoder, metadata = load_light_encoder(folder)
    check_word_space(folder, metadata.get("word_space"), foundation)
    return encoder

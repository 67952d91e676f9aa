"""`asymcir train union`: the UNION head, or TransAgg with its target, trained from triplets."""

import logging
from pathlib import Path

import numpy as np
import torch

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
from asymcir_training.stages.preparation import (
    check_word_space,
    describe_foundation,
    loop_of,
    open_teacher_cache,
    prepare,
)
from asymcir_training.stages.sections import (
    UnionRun,
)
from asymcir_training.trainers.transagg import train_transagg
from asymcir_training.trainers.union import train_union_head
from asymcir_training.triplets.formats import read_triplets
from asymcir_training.triplets.pictures import embed_modifiers, number_pictures
from asymcir_training.triplets.validation import compose_triplets

_LOG = logging.getLogger(__name__)


def train_union(config: UnionRun) -> Path:
    """Train the UNION head, or TransAgg and its target, from triplets; returns the checkpoint.

    Raises:
        TrainingError: see the errors of the parts.
    """
    execution = prepare(config.run, config, workers=config.workers)
    section = config.triplets
    triplets = read_triplets(
        section.path,
        format=section.format,
        images=section.images,
        limit=section.limit or None,
        step=section.step or None,
        seed=config.run.seed if section.limit and not section.step else None,
    )
    foundation = load_foundation(config.foundation.name, config.foundation.pretrained)
    foundation.to(execution.processes.device)
    metadata = describe_foundation(foundation)
    encoder = _load_asking(section.light, foundation) if section.system == "light" else None
    numbered = number_pictures(triplets)
    pictures = PictureFiles(numbered.paths)
    root = config.cache or config.run.work_folder / "teacher"
    cache = open_teacher_cache(root, foundation, pictures, execution, patches=False)
    rows = np.full(len(pictures), -1)
    rows[cache.kept] = np.arange(len(cache.kept))
    asks, answers = rows[numbered.references.numpy()], rows[numbered.targets.numpy()]
    usable = np.flatnonzero((asks >= 0) & (answers >= 0))
    if not len(usable):
        raise DataError(f"no triplet of {section.path} has two readable pictures")
    if len(usable) < len(triplets):
        _LOG.warning("%d triplets left out: their pictures cannot be read", len(triplets) - len(usable))
    triplets = [triplets[i] for i in usable]
    references, targets = torch.from_numpy(asks[usable]), torch.from_numpy(answers[usable])
    null = foundation.encode_null().detach()
    modifiers = [triplet.modifier for triplet in triplets]
    torch.manual_seed(config.run.seed)
    head = UnionHead(foundation.embedding_width)
    if section.system == "transagg":
        # Patches are large and only the pictures that ask need them; those come first in both sets.
        asking = open_teacher_cache(
            root, foundation, PictureFiles(numbered.paths[: numbered.asking]), execution, patches=True
        )
        assert asking.patches is not None
        fusion = TransAgg(foundation.embedding_width).to(execution.processes.device)
        trained = head.to(execution.processes.device) if config.transagg.target == "union" else None
        train_transagg(
            fusion,
            trained,
            image_features=torch.from_numpy(np.array(cache.embedding)),
            patches=asking.patches,
            text=embed_modifiers(foundation, modifiers),
            null_features=null,
            references=references,
            targets=targets,
            config=config.transagg,
            loop=loop_of(config.run, "transagg", rows=len(triplets), batch=config.transagg.batch),
            execution=execution,
        )
        metadata["target"] = config.transagg.target
        if trained is not None:
            metadata["target_space"] = foundation.target_spaces(trained)["union"]
        if execution.processes.is_main:
            save_transagg(config.run.out, fusion, metadata)
            if trained is not None:
                beside = config.run.out.with_name(f"{config.run.out.name}-union")
                save_union_head(beside, trained, metadata)
                _LOG.info("its UNION head: %s", beside)
    else:
        assert encoder is not None
        queries = compose_triplets(
            encoder.to(execution.processes.device),
            foundation,
            [triplet.reference for triplet in triplets],
            modifiers,
            workers=execution.workers,
        )
        train_union_head(
            head,
            queries=queries,
            image_features=cache.embedding,
            null_features=null,
            targets=targets,
            answers=torch.arange(len(cache.kept)),
            config=config.union,
            loop=loop_of(config.run, "union", rows=len(triplets), batch=config.union.batch),
            execution=execution,
        )
        if execution.processes.is_main:
            save_union_head(config.run.out, head, metadata)
    execution.processes.barrier()
    return config.run.out


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

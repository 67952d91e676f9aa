"""`asymcir train foundation`: a visual tower aligned to its locked text tower, from captioned pictures."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from asymcir_training.batches.scan import scan_pictures
from asymcir_training.engine.execution import Rows
from asymcir_training.engine.processes import Processes
from asymcir_training.errors import DataError
from asymcir_training.foundation.creation import load_trunk_weights, write_foundation, write_initial_foundation
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.model import CONFIG_FILE, Foundation, load_foundation
from asymcir_training.pictures.sets import PictureSet
from asymcir_training.stages.config_files import to_plain
from asymcir_training.stages.preparation import embed_texts, loop_of, open_run_pictures, prepare
from asymcir_training.stages.sections import (
    FoundationRun,
)
from asymcir_training.trainers.align import Wordings, align_visual_tower

_LOG = logging.getLogger(__name__)


def train_foundation(config: FoundationRun) -> Path:
    """Align a visual tower to its locked text tower; returns the open_clip folder, for `local-dir:FOLDER`.

    Raises:
        TrainingError: see the errors of the parts.
    """
    execution = prepare(config.run, config, stage="foundation", workers=config.data.workers, mark=CONFIG_FILE)
    pictures = open_run_pictures(config.data.pictures, config.run)
    scan = scan_pictures(pictures, folder=config.run.work_folder / "scan", workers=config.data.workers)
    kept = np.asarray([number for number in scan.kept if pictures.captions(int(number))], dtype=np.int64)
    if not len(kept):
        raise DataError(
            f"none of {len(scan.kept)} pictures has a caption: give a JSON-lines list with captions, or a text file of "
            "the picture's name beside each"
        )
    if len(kept) < len(scan.kept):
        _LOG.warning("%d of %d pictures have no caption: left out", len(scan.kept) - len(kept), len(scan.kept))
    foundation, source = _start_foundation(config, execution.processes)
    foundation.to(execution.processes.device)
    root = config.data.cache or config.run.work_folder / "teacher"
    labels, wordings = embed_captions(pictures, kept, lambda texts: embed_texts(root, foundation, texts, execution))
    visual = foundation.model.visual
    visual.requires_grad_(True)
    visual.to(memory_format=torch.channels_last)
    is_timm = hasattr(visual, "trunk")
    _LOG.info("aligning on %d pictures of %d concepts or sets of captions", len(kept), len(wordings))
    scale = align_visual_tower(
        visual.trunk if is_timm else visual,
        visual.head if is_timm else nn.Identity(),
        encode=foundation.encode_pixels,
        preprocessing=foundation.preprocessing,
        pictures=pictures,
        kept=kept,
        labels=labels,
        wordings=wordings,
        config=config.align,
        loop=loop_of(config.run, "foundation", rows=len(kept), batch=config.align.batch),
        execution=execution,
    )
    foundation.model.logit_scale.data.fill_(float(np.log(scale)))
    if execution.processes.is_main:
        write_foundation(foundation, config.run.out, source=source, pretrained=config.start.pretrained)
    execution.processes.barrier()
    return config.run.out


def _start_foundation(config: FoundationRun, processes: Processes) -> tuple[Foundation, str]:
    """Load what the foundation starts from; returns it and the name that it was loaded by."""
    start = config.start
    if start.text is None:
        assert start.name is not None
        foundation = load_foundation(start.name, start.pretrained)
        if start.trunk_weights is not None:
            trunk = getattr(foundation.model.visual, "trunk", None)
            if trunk is None:
                raise DataError(f"start.trunk_weights is for a timm tower; the visual tower of {start.name} is none")
            load_trunk_weights(trunk, start.trunk_weights)
        return foundation, start.name
    # By what it was asked for, so that another start is another folder.
    folder = config.run.work_folder / f"start-{digest(weights={}, facts=to_plain(start))[:8]}"
    if processes.is_main and not (folder / CONFIG_FILE).is_file():  # written last
        write_initial_foundation(
            folder,
            text=start.text,
            trunk=start.trunk,
            size=start.size,
            trunk_weights=start.trunk_weights,
            pretrained=start.trunk_pretrained,
        )
    processes.barrier()
    return load_foundation(f"local-dir:{folder}"), f"local-dir:{folder}"


def embed_captions(
    pictures: PictureSet, kept: NDArray[np.int64], embed: Callable[[Sequence[str]], Rows]
) -> tuple[NDArray[np.int64], Wordings]:
    """Embed the captions of every class; returns the class of each picture [n], and the wordings.

    Pictures of one "concept" are one class; its wordings are the captions of the first of them, and what others add.
    Where a picture names no concept, those with the same captions are one.
    """
    numbers: dict[str | tuple[str, ...], int] = {}
    wordings: list[list[str]] = []
    said: list[set[str]] = []
    labels = np.empty(len(kept), dtype=np.int64)
    for row, number in enumerate(kept):
        captions = pictures.captions(int(number))
        label = numbers.setdefault(pictures.concept(int(number)) or captions, len(numbers))
        if label == len(wordings):
            wordings.append(list(captions))
            said.append(set(captions))
        wordings[label] += [caption for caption in captions if caption not in said[label]]
        said[label].update(captions)
        labels[row] = label
    texts = [text for captions in wordings for text in captions]
    return labels, Wordings(embed(texts), [len(captions) for captions in wordings])

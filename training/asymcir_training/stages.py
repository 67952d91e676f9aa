"""What `asymcir train` does: each stage from its configuration to a folder that the next one reads.

Every stage runs on one process or, under torchrun, on many; the main one reads the large towers' outputs into the cache
and writes the result.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from asymcir_protos import Preprocessing
from asymcir_protos.manifest import write_atomically
from numpy.typing import NDArray
from torch import nn

from asymcir_training.align import Wordings, align_visual_tower
from asymcir_training.cache import TeacherCache, build_teacher_cache, visual_digest
from asymcir_training.checkpoints import (
    RECORD_FILE,
    SYMMETRIC_ENCODER,
    check_free,
    load_light_encoder,
    load_symmetric_encoder,
    read_kind,
    save_light_encoder,
    save_symmetric_encoder,
    save_transagg,
    save_union_head,
)
from asymcir_training.config import to_plain
from asymcir_training.data.scan import scan_pictures
from asymcir_training.data.sources import PictureSet, open_pictures
from asymcir_training.devices import Precision, Processes, start_processes
from asymcir_training.digests import digest
from asymcir_training.distil import DistilConfig, distil
from asymcir_training.embedding import embed_texts
from asymcir_training.errors import DataError
from asymcir_training.execution import Execution
from asymcir_training.foundation import CONFIG_FILE, Foundation, load_foundation
from asymcir_training.initial_foundation import (
    load_trunk_weights,
    write_foundation,
    write_initial_foundation,
)
from asymcir_training.light import LightEncoder, imagenet_preprocessing
from asymcir_training.loop import LoopConfig
from asymcir_training.picture_files import PictureFiles
from asymcir_training.runs import DistilRun, FoundationRun, RunSection, StudentSection, UnionRun, ValidationSection
from asymcir_training.symmetric import SymmetricEncoder
from asymcir_training.transagg import TransAgg
from asymcir_training.transagg_training import train_transagg
from asymcir_training.triplet_features import embed_modifiers, gather_gallery, number_pictures
from asymcir_training.triplet_formats import read_triplets
from asymcir_training.triplet_validation import TripletValidation, compose_triplets
from asymcir_training.union import UnionHead
from asymcir_training.union_training import train_union_head

_CONFIG_FILE = "config.json"
_LOG = logging.getLogger(__name__)


def train_foundation(config: FoundationRun) -> Path:
    """Align a visual tower to its locked text tower; returns the open_clip folder, for `local-dir:FOLDER`.

    Raises:
        TrainingError: see the errors of the parts.
    """
    execution = _prepare(config.run, config, workers=config.data.workers, mark=CONFIG_FILE)
    pictures = _open(config.data.pictures, config.run)
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
    labels, wordings = _embed_captions(foundation, pictures, kept)
    visual = foundation.model.visual
    visual.requires_grad_(True)
    visual.to(memory_format=torch.channels_last)
    is_timm = hasattr(visual, "trunk")
    _LOG.info("aligning on %d pictures with %d sets of captions", len(kept), len(wordings))
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
        loop=_loop(config.run, "foundation", rows=len(kept), batch=config.align.batch),
        execution=execution,
    )
    foundation.model.logit_scale.data.fill_(float(np.log(scale)))
    if execution.processes.is_main:
        write_foundation(foundation, config.run.out, source=source, pretrained=config.start.pretrained)
    execution.processes.barrier()
    return config.run.out


def train_distil(config: DistilRun) -> Path:
    """Distil a light (or symmetric) encoder from a foundation; returns its checkpoint.

    Raises:
        TrainingError: see the errors of the parts.
    """
    execution = _prepare(config.run, config, workers=config.data.workers)
    phrases, modifiers = read_lines(config.texts.phrases), read_lines(config.texts.modifiers)
    losses = _fit_losses(config.distil, phrases, modifiers)
    pictures = _open(config.data.pictures, config.run)
    foundation = load_foundation(config.foundation.name, config.foundation.pretrained)
    foundation.to(execution.processes.device)
    # What can be wrong is found before the foundation looks at every picture.
    execution.split(min(losses.batch, len(pictures)))
    if losses.lar_weight and losses.lar == "matching":
        foundation.check_matching()
    student = _build_student(config.student, foundation, seed=config.run.seed)
    root = config.data.cache or config.run.work_folder / "teacher"
    validation = _validation(config.validation, foundation, student.preprocessing, execution, root)
    cache = _cache(
        root,
        foundation,
        pictures,
        execution,
        patches=(losses.lar_weight > 0.0 and losses.lar == "late") or config.student.symmetric,
    )
    _LOG.info(
        "%d pictures; %d skipped; %d phrases, %d modifiers",
        len(cache.kept),
        len(cache.problems),
        len(phrases),
        len(modifiers),
    )
    distil(
        student,
        foundation,
        pictures=pictures,
        kept=cache.kept,
        teacher=cache.embedding,
        patches=cache.patches,
        phrases=phrases,
        modifiers=modifiers,
        config=losses,
        loop=_loop(
            config.run,
            "distil",
            rows=len(cache.kept),
            batch=losses.batch,
            best=config.validation.best if validation is not None else "",
        ),
        execution=execution,
        validate=validation,
    )
    metadata = _name_foundation(foundation)
    if execution.processes.is_main:
        if isinstance(student, SymmetricEncoder):
            save_symmetric_encoder(config.run.out, student, metadata)
        else:
            save_light_encoder(config.run.out, student, metadata)
    execution.processes.barrier()
    return config.run.out


def train_union(config: UnionRun) -> Path:
    """Train the UNION head, or TransAgg and its target, from triplets; returns the checkpoint.

    Raises:
        TrainingError: see the errors of the parts.
    """
    execution = _prepare(config.run, config, workers=config.workers)
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
    metadata = _name_foundation(foundation)
    encoder = _load_asking(section.light, foundation) if section.system == "light" else None
    numbered = number_pictures(triplets)
    pictures = PictureFiles(numbered.paths)
    root = config.cache or config.run.work_folder / "teacher"
    cache = _cache(root, foundation, pictures, execution, patches=False)
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
        asking = _cache(root, foundation, PictureFiles(numbered.paths[: numbered.asking]), execution, patches=True)
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
            loop=_loop(config.run, "transagg", rows=len(triplets), batch=config.transagg.batch),
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
            loop=_loop(config.run, "union", rows=len(triplets), batch=config.union.batch),
            execution=execution,
        )
        if execution.processes.is_main:
            save_union_head(config.run.out, head, metadata)
    execution.processes.barrier()
    return config.run.out


def read_lines(path: Path | None) -> list[str]:
    """Read the lines of a text file, empty ones left out; none without a file.

    Raises:
        DataError: the file cannot be read.
    """
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read {path}: {exc}") from exc
    return [line for line in lines if line]


def _prepare(run: RunSection, config: object, *, workers: int, mark: str = RECORD_FILE) -> Execution:
    """Join the processes, refuse what the result would destroy, and keep the configuration beside the run's state."""
    processes = start_processes(run.device)
    check_free(run.out, mark)
    if processes.is_main:
        run.work_folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(to_plain(config), indent=2) + "\n"
        path = run.work_folder / _CONFIG_FILE
        if not path.is_file() or run.allow_changes:  # a resumed run has the configuration that it began with
            write_atomically(path, text)
    else:
        logging.getLogger("asymcir_training").setLevel(logging.ERROR)  # one voice is enough
    precision = Precision(run.precision, processes.device)
    return Execution(processes=processes, precision=precision, chunks=run.chunks, workers=workers, ema=run.ema)


def _open(specs: Sequence[str], run: RunSection) -> PictureSet:
    return open_pictures(specs, index_folder=run.work_folder / "archives")


def _loop(run: RunSection, stage: str, *, rows: int, batch: int, best: str = "") -> LoopConfig:
    return LoopConfig(
        folder=run.work_folder / stage,
        steps=max(1, round(run.epochs * max(1, rows // batch))),
        seed=run.seed,
        save_every=run.save_every,
        log_every=run.log_every,
        validate_every=run.validate_every,
        best=best,
        tensorboard=run.tensorboard,
        allow_changes=run.allow_changes,
    )


def _cache(
    root: Path, foundation: Foundation, pictures: PictureSet, execution: Execution, *, patches: bool
) -> TeacherCache:
    """Build the cache in the main process, whose progress is seen, then open it in every one."""

    def build() -> TeacherCache:
        return build_teacher_cache(
            root,
            foundation,
            pictures,
            patches=patches,
            workers=execution.workers,
            device=execution.processes.device,
            autocast=execution.precision.lower,
        )

    cache = build() if execution.processes.is_main else None
    execution.processes.barrier()
    return cache if cache is not None else build()


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


def _embed_captions(
    foundation: Foundation, pictures: PictureSet, kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Wordings]:
    """Embed every set of captions once; returns the set of each picture [n], and the wordings."""
    numbers: dict[tuple[str, ...], int] = {}
    labels = np.asarray([numbers.setdefault(pictures.captions(int(n)), len(numbers)) for n in kept], dtype=np.int64)
    texts = [text for captions in numbers for text in captions]
    embeddings = embed_texts(foundation, texts).cpu()
    return labels, Wordings(embeddings, [len(captions) for captions in numbers])


def _build_student(section: StudentSection, foundation: Foundation, *, seed: int) -> LightEncoder | SymmetricEncoder:
    torch.manual_seed(seed)
    student: LightEncoder | SymmetricEncoder
    if section.start is not None:
        student, metadata = load_light_encoder(section.start)
        _check_space(section.start, metadata.get("word_space"), foundation)
        return student
    if section.symmetric:
        return SymmetricEncoder.of_foundation(foundation, sentence_length=section.sentence_length, width=section.width)
    student = LightEncoder(
        section.backbone,
        sentence_length=section.sentence_length,
        word_width=foundation.word_width,
        width=section.width,
        preprocessing=imagenet_preprocessing(section.size),
        pretrained=section.pretrained,
    )
    if section.backbone_weights is not None:
        load_trunk_weights(student.backbone, section.backbone_weights)
    student.token_learner.anchor_to_words(foundation.word_embedding_table().cpu())
    return student


def _fit_losses(config: DistilConfig, phrases: Sequence[str], modifiers: Sequence[str]) -> DistilConfig:
    """Turn off the losses whose texts were not given, and say what that costs."""
    if phrases and modifiers:
        return config
    missing = "modifiers" if phrases else "phrases"
    if config.consistency_weight or (config.identity_weight and not phrases):
        _LOG.warning(
            "without %s there is no composition consistency: the typed change will hardly move the query; give "
            "texts.phrases and texts.modifiers",
            missing,
        )
    return replace(config, consistency_weight=0.0, identity_weight=config.identity_weight if phrases else 0.0)


def _validation(
    section: ValidationSection, foundation: Foundation, spec: Preprocessing, execution: Execution, root: Path
) -> TripletValidation | None:
    if section.triplets is None:
        return None
    triplets = read_triplets(section.triplets, format=section.format, images=section.images)
    gallery = gather_gallery(triplets, section.gallery)
    cache = _cache(root, foundation, PictureFiles(gallery.paths), execution, patches=False)
    return TripletValidation(
        foundation,
        triplets,
        gallery=gallery,
        features=cache.embedding,
        kept=cache.kept.tolist(),
        spec=spec,
        device=execution.processes.device,
    )


def _check_space(folder: Path, word_space: object, foundation: Foundation) -> None:
    if word_space != foundation.word_space():
        raise DataError(
            f"the encoder {folder} is of the word space {str(word_space)[:12]}, the foundation of "
            f"{foundation.word_space()[:12]}: pass the foundation that it was distilled from"
        )


def _load_asking(folder: Path | None, foundation: Foundation) -> LightEncoder | SymmetricEncoder:
    """Load the encoder that asks the triplets' queries."""
    assert folder is not None
    encoder: LightEncoder | SymmetricEncoder
    if read_kind(folder) == SYMMETRIC_ENCODER:
        encoder, metadata = load_symmetric_encoder(folder)
        encoder.attach(foundation)
    else:
        encoder, metadata = load_light_encoder(folder)
    _check_space(folder, metadata.get("word_space"), foundation)
    return encoder


def _name_foundation(foundation: Foundation) -> dict[str, str]:
    """Say in a checkpoint what it belongs to: the text tower's space, and the visual tower that taught it."""
    return {
        "word_space": foundation.word_space(),
        "foundation": foundation.name,
        "visual_digest": visual_digest(foundation),
    }

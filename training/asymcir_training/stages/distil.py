"""`asymcir train distil`: a light (or symmetric) encoder distilled from a frozen foundation on unlabelled pictures."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from asymcir_common import PlaceError
from asymcir_common.files import read_utf8

from asymcir_training.engine.execution import Execution
from asymcir_training.errors import DataError
from asymcir_training.foundation.creation import load_trunk_weights
from asymcir_training.foundation.model import Foundation, load_foundation
from asymcir_training.foundation.preprocessing import imagenet_preprocessing
from asymcir_training.foundation.prompts import TOKENS_MODIFIER_PROMPT
from asymcir_training.models.checkpoints import (
    load_light_encoder,
    save_light_encoder,
    save_symmetric_encoder,
)
from asymcir_training.models.light_encoder import LightEncoder
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.pictures.files import PictureFiles
from asymcir_training.stages.preparation import (
    check_word_space,
    describe_foundation,
    loop_of,
    main_first,
    open_run_pictures,
    open_teacher_cache,
    prepare,
)
from asymcir_training.stages.sections import (
    DistilRun,
    StudentSection,
    ValidationSection,
)
from asymcir_training.teacher.texts import TextCache
from asymcir_training.trainers.distil import DistilConfig, distil, start_student
from asymcir_training.triplets.formats import read_triplets
from asymcir_training.triplets.modifiers import check_modifiers, check_triplets
from asymcir_training.triplets.pictures import gather_gallery
from asymcir_training.triplets.validation import TripletValidation

_LOG = logging.getLogger(__name__)


def train_distil(config: DistilRun) -> Path:
    """Distil a light (or symmetric) encoder from a foundation; returns its checkpoint.

    Raises:
        TrainingError: see the errors of the parts.
    """
    execution = prepare(config.run, config, stage="distil", workers=config.data.workers)
    phrases, numbered = read_lines(config.texts.phrases), _number_lines(config.texts.modifiers)
    modifiers = [line for _, line in numbered]
    losses = _fit_losses(config.distil, phrases, modifiers)
    pictures = open_run_pictures(config.data.pictures, config.run)
    foundation = load_foundation(config.foundation.name, config.foundation.pretrained)
    foundation.to(execution.processes.device)
    # What can be wrong is found before the foundation looks at every picture.
    execution.split(min(losses.batch, len(pictures)))
    if losses.lar_weight and losses.lar == "matching":
        foundation.check_matching()
    student = _build_student(config.student, foundation, seed=config.run.seed)
    start_student(student, losses, execution.processes)
    if losses.consistency_weight:
        _check_texts(foundation, phrases, numbered, config.texts.modifiers, sentence_length=student.sentence_length)
    root = config.data.cache or config.run.work_folder / "teacher"
    validation = _validation(config.validation, foundation, student, execution, root)
    cache = open_teacher_cache(
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
        bank=main_first(execution, lambda: TextCache(root, foundation).embed_phrases(phrases)) if phrases else None,
        modifiers=modifiers,
        config=losses,
        loop=loop_of(
            config.run,
            "distil",
            rows=len(cache.kept),
            batch=losses.batch,
            best=config.validation.best if validation is not None else "",
        ),
        execution=execution,
        validate=validation,
    )
    metadata = describe_foundation(foundation)
    if execution.processes.is_main:
        if isinstance(student, SymmetricEncoder):
            save_symmetric_encoder(config.run.out, student, metadata)
        else:
            save_light_encoder(config.run.out, student, metadata)
    execution.processes.barrier()
    return config.run.out


def read_lines(path: Path | None) -> list[str]:
    """Read the lines of a text file, empty ones left out; none without a file.

    Raises:
        DataError: the file cannot be read.
    """
    return [line for _, line in _number_lines(path)]


def _number_lines(path: Path | None) -> list[tuple[int, str]]:
    """Read the lines of a text file with their numbers, empty ones left out."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in read_utf8(path).splitlines()]
    except PlaceError as exc:
        raise DataError(str(exc)) from exc
    return [(number, line) for number, line in enumerate(lines, 1) if line]


def _check_texts(
    foundation: Foundation,
    phrases: Sequence[str],
    modifiers: Sequence[tuple[int, str]],
    path: Path | None,
    *,
    sentence_length: int,
) -> None:
    """Refuse modifiers that do not fit beside the sentence, and say where they do not fit beside a phrase."""
    named = [(f"{path}:{number}", text) for number, text in modifiers]
    check_modifiers(foundation, named, sentence_length=sentence_length)
    longest = max(len(foundation.tokenize(text)) for _, text in modifiers)
    room = foundation.context_length - len(foundation.start_ids) - len(foundation.end_ids)
    frame = len(foundation.tokenize(TOKENS_MODIFIER_PROMPT.format(tokens="", modifier="")))
    long = sum(len(foundation.tokenize(phrase)) + frame + longest > room for phrase in phrases)
    if long:
        _LOG.warning("%d of %d phrases leave no room for the longest modifier, which is cut there", long, len(phrases))


def _build_student(section: StudentSection, foundation: Foundation, *, seed: int) -> LightEncoder | SymmetricEncoder:
    torch.manual_seed(seed)
    student: LightEncoder | SymmetricEncoder
    if section.start is not None:
        student, metadata = load_light_encoder(section.start)
        check_word_space(section.start, metadata.get("word_space"), foundation)
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
    section: ValidationSection,
    foundation: Foundation,
    student: LightEncoder | SymmetricEncoder,
    execution: Execution,
    root: Path,
) -> TripletValidation | None:
    if section.triplets is None:
        return None
    triplets = read_triplets(section.triplets, format=section.format, images=section.images)
    check_triplets(foundation, triplets, sentence_length=student.sentence_length)
    gallery = gather_gallery(triplets, section.gallery)
    cache = open_teacher_cache(root, foundation, PictureFiles(gallery.paths), execution, patches=False)
    return TripletValidation(
        foundation,
        triplets,
        gallery=gallery,
        features=cache.embedding,
        kept=cache.kept.tolist(),
        spec=student.preprocessing,
        device=execution.processes.device,
    )

"""The configurations of `asymcir train`: what each stage reads, writes and does, section by section.

The sections [align], [distil], [union] and [transagg] are the trainers' own (align.py, distil.py, union.py,
transagg.py); here stands what surrounds them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from asymcir_common.arguments import MAX_SIDE, MAX_THREADS

from asymcir_training.errors import ConfigError
from asymcir_training.trainers.align import AlignConfig
from asymcir_training.trainers.distil import DistilConfig
from asymcir_training.trainers.transagg import TransAggConfig
from asymcir_training.trainers.union import UnionConfig
from asymcir_training.triplets.formats import Format

_MAX_CHUNKS = 65_536
_MAX_EPOCHS = 1_000_000.0
_MAX_SEED = 2**32 - 1
_MAX_SENTENCE_LENGTH = 64
"""Sentence tokens stand in a text encoder's context, 77 tokens in CLIP, beside the words of the prompt."""
_MAX_STEPS = 1_000_000_000
_MAX_TRIPLETS = 1_000_000_000
_MAX_WIDTH = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSection:
    """Where a run goes, how long it is and what it runs on."""

    out: Annotated[Path, "folder that the result is written to"]
    work: Annotated[Path | None, "state, logs and caches; without it OUT.work"] = None
    epochs: Annotated[float, "passes over the data; a part of one is fine"] = 10.0
    seed: Annotated[int, "of every random draw"] = 0
    device: Annotated[str, 'auto, cpu, cuda or cuda:1; under torchrun "auto" gives each process its own'] = "auto"
    precision: Annotated[Literal["fp32", "bf16", "fp16"], "of the forward passes (autocast)"] = "fp32"
    chunks: Annotated[
        int, "parts that a batch goes through in, for less memory; the gradients are those of the whole batch"
    ] = 1
    ema: Annotated[float, "decay of an average of the weights that is validated and saved instead; 0: none"] = 0.0
    save_every: Annotated[int, "steps between states to resume from"] = 200
    log_every: Annotated[int, "steps between log lines"] = 20
    validate_every: Annotated[int, "steps between validations; 0: only at the end (union: after every epoch)"] = 0
    tensorboard: Annotated[bool, "write TensorBoard events beside the log"] = False
    allow_changes: Annotated[bool, "resume although the configuration changed"] = False

    def __post_init__(self) -> None:
        if not self.out.name or self.work_folder.resolve().is_relative_to(self.out.resolve()):
            raise ConfigError(
                f"expected out to be a folder of its own and work outside it, got {self.out} and {self.work_folder}: "
                "the result replaces what is in out"
            )
        _check_range("run.chunks", self.chunks, 1, _MAX_CHUNKS)
        for name, least in (("save_every", 1), ("log_every", 1), ("validate_every", 0)):
            _check_range(f"run.{name}", getattr(self, name), least, _MAX_STEPS)
        _check_range("run.seed", self.seed, 0, _MAX_SEED)
        if not 0.0 < self.epochs <= _MAX_EPOCHS:
            raise ConfigError(f"expected epochs above 0 and at most {_MAX_EPOCHS:g}, got {self.epochs}")
        if not 0.0 <= self.ema < 1.0:
            raise ConfigError(f"expected ema from 0 to below 1, got {self.ema}")

    @property
    def work_folder(self) -> Path:
        """Where state, logs and caches go."""
        return self.work or self.out.parent / f"{self.out.name or 'out'}.work"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSection:
    """The pictures."""

    pictures: Annotated[tuple[str, ...], "folders, zips, WebDataset tars ({000..009} and * work) or JSON-lines lists"]
    workers: Annotated[int, "processes that decode and augment; 0: none beside the trainer"] = 2
    cache: Annotated[Path | None, "the frozen towers' outputs, shared between runs; without it in the work folder"] = (
        None
    )

    def __post_init__(self) -> None:
        _check_range("data.workers", self.workers, 0, MAX_THREADS)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundationSection:
    """The frozen vision-language model."""

    name: Annotated[str, "open_clip model, local-dir:FOLDER, or blip:FOLDER"]
    pretrained: Annotated[str | None, "pretrained tag of that model, or path of a checkpoint"] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentSection:
    """The light encoder."""

    backbone: Annotated[str, "timm model"] = "tf_efficientnet_lite0"
    size: Annotated[int, "side of the pictures that it sees"] = 224
    sentence_length: Annotated[int, "sentence tokens L"] = 6
    width: Annotated[int, "inner width d of the token learner"] = 512
    pretrained: Annotated[bool, "start the backbone from timm's weights (needs its hub)"] = False
    backbone_weights: Annotated[Path | None, "state dict of the backbone to start from (.safetensors or .pth)"] = None
    start: Annotated[Path | None, "light-encoder checkpoint to start from; it brings its own form and size"] = None
    symmetric: Annotated[
        bool, "ISA's symmetric form: the foundation's own visual encoder feeds the token learner (research)"
    ] = False

    def __post_init__(self) -> None:
        _check_range("student.size", self.size, 1, MAX_SIDE)
        _check_range("student.sentence_length", self.sentence_length, 1, _MAX_SENTENCE_LENGTH)
        _check_range("student.width", self.width, 1, _MAX_WIDTH)
        if self.start is not None and self.symmetric:
            raise ConfigError("student.start is a light encoder's checkpoint: it cannot start a symmetric one")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSection:
    """The texts of composition consistency, one a line."""

    phrases: Annotated[Path | None, "text bank that pseudo-captions come from"] = None
    modifiers: Annotated[Path | None, "changes to draw from"] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationSection:
    """Triplets that are measured while training; the best weights by `best` are kept."""

    triplets: Annotated[Path | None, "list of triplets; none: no validation"] = None
    format: Annotated[Format, "auto, jsonl, cirr, lasco, llavasco or sketchy"] = "auto"
    images: Annotated[Path | None, "folder that the list's pictures are in"] = None
    gallery: Annotated[tuple[Path, ...], "folders to search in; none: the triplets' own pictures"] = ()
    best: Annotated[Literal["R@1", "R@5", "R@10"], "the figure that decides"] = "R@10"


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundationStart:
    """What the foundation is made from: a whole open_clip model, or a text tower and a visual trunk."""

    name: Annotated[str | None, "open_clip model or local-dir:FOLDER whose visual tower is trained further"] = None
    pretrained: Annotated[str | None, "its pretrained tag or checkpoint"] = None
    text: Annotated[Path | None, "Hugging Face folder of a sentence encoder, the locked text tower"] = None
    trunk: Annotated[str, "timm model of the visual tower, with text"] = "tf_efficientnet_lite0"
    trunk_weights: Annotated[Path | None, "state dict of the trunk to start from (.safetensors or .pth)"] = None
    trunk_pretrained: Annotated[bool, "start the trunk from timm's weights (needs its hub)"] = False
    size: Annotated[int, "side of the pictures that the new tower sees"] = 224

    def __post_init__(self) -> None:
        _check_range("start.size", self.size, 1, MAX_SIDE)
        if self.name is not None and self.name.startswith("blip:"):
            raise ConfigError(
                f"a BLIP model cannot be aligned here, got start.name {self.name!r}: take an open_clip model"
            )
        if (self.name is None) == (self.text is None):
            raise ConfigError("set either start.name (a whole open_clip model) or start.text (a locked text tower)")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundationRun:
    """`asymcir train foundation`: align a visual tower to a locked text tower, on captioned pictures."""

    run: RunSection
    data: DataSection
    start: FoundationStart
    align: AlignConfig = field(default_factory=AlignConfig)

    def __post_init__(self) -> None:
        _refuse_idle("run.validate_every", self.run.validate_every, "the foundation has no validation")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilRun:
    """`asymcir train distil`: distil a light encoder from a foundation, on unlabelled pictures."""

    run: RunSection
    data: DataSection
    foundation: FoundationSection
    student: StudentSection = field(default_factory=StudentSection)
    texts: TextSection = field(default_factory=TextSection)
    distil: DistilConfig = field(default_factory=DistilConfig)
    validation: ValidationSection = field(default_factory=ValidationSection)

    def __post_init__(self) -> None:
        if self.validation.triplets is None:
            _refuse_idle("run.validate_every", self.run.validate_every, "validation.triplets is not set")
            _refuse_idle("validation.gallery", self.validation.gallery, "validation.triplets is not set")
        if self.student.symmetric:
            for name in ("frozen", "mix_after"):
                why = "a symmetric student has no backbone of its own"
                _refuse_idle(f"distil.{name}", getattr(self.distil, name), why)


@dataclass(frozen=True, kw_only=True, slots=True)
class TripletSection:
    """The triplets and who asks them."""

    path: Annotated[Path, "list of triplets"]
    format: Annotated[Format, "auto, jsonl, cirr, lasco, llavasco or sketchy"] = "auto"
    images: Annotated[Path | None, "folder that the list's pictures are in"] = None
    limit: Annotated[int, "take this many; 0: all"] = 0
    step: Annotated[
        int,
        "every step-th from the first on (LlavaSCo's 5,000: 70); 0: all, or as many as limit says, drawn by the seed",
    ] = 0
    system: Annotated[
        Literal["light", "transagg"], "light: composed by `light`; transagg: UNION's own query fusion, trained here"
    ] = "light"
    light: Annotated[Path | None, "light-encoder (or symmetric) checkpoint that asks"] = None
    held_out: Annotated[
        float, "share of the triplets that is measured and not trained on, without validation.triplets; 0: none"
    ] = 0.05

    def __post_init__(self) -> None:
        for name in ("limit", "step"):
            _check_range(f"triplets.{name}", getattr(self, name), 0, _MAX_TRIPLETS)
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"expected triplets.held_out from 0 to below 1, got {self.held_out}")


@dataclass(frozen=True, kw_only=True, slots=True)
class UnionRunSection(RunSection):
    """The same, as long as UNION's public recipe."""

    epochs: Annotated[float, "passes over the triplets"] = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class UnionRun:
    """`asymcir train union`: train the UNION head (or TransAgg with a target type) from triplets, towers frozen."""

    run: UnionRunSection
    triplets: TripletSection
    foundation: FoundationSection
    union: UnionConfig = field(default_factory=UnionConfig)
    transagg: TransAggConfig = field(default_factory=TransAggConfig)
    validation: ValidationSection = field(default_factory=ValidationSection)
    workers: Annotated[int, "processes that decode pictures"] = 2
    cache: Annotated[Path | None, "the frozen towers' outputs; without it in the work folder"] = None

    def __post_init__(self) -> None:
        _check_range("workers", self.workers, 0, MAX_THREADS)
        if self.triplets.system == "light" and self.triplets.light is None:
            raise ConfigError("triplets.light (--light) is missing: the light-encoder checkpoint that asks the queries")
        if self.validation.triplets is None:
            _refuse_idle("validation.gallery", self.validation.gallery, "validation.triplets is not set")
            if not self.triplets.held_out:
                why = "triplets.held_out is 0 and validation.triplets is not set"
                _refuse_idle("run.validate_every", self.run.validate_every, why)
        if self.triplets.system == "transagg":
            _refuse_idle("triplets.light", self.triplets.light, "transagg asks the queries itself")
            _refuse_idle(
                "[union]", self.union != UnionConfig(), "transagg reads [transagg]: set transagg.batch and the like"
            )
        else:
            _refuse_idle("[transagg]", self.transagg != TransAggConfig(), 'triplets.system is not "transagg"')


def _check_range(key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"expected {key} from {least} to {most}, got {value}")


def _refuse_idle(key: str, value: object, why: str) -> None:
    """Refuse a key that was set and would do nothing: whoever set it expects something of it."""
    if value:
        raise ConfigError(f"{key} does nothing here ({why}): leave it away")

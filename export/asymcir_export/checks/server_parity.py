"""Parity of the server bundle, opened by `asymcir_server`: tokenisation, composition and padding included.

Every part is compared on the same inputs as its original, with the thresholds of its own weight storage. The whole way
from pixels to targets is compared too. There the null text of a lean text tower adds one and the same error to every
target, which moves all answers alike, and beside which the targets of a head that was hardly trained barely spread:
with an int8 text tower and such a head in float32 the error was 1.06 of the spread. So the error that all targets share
is left out of it.

Notation: L sentence tokens, D word-embedding width, E joint-embedding width, S picture side, b batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from asymcir_common import preprocess
from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.composition import Composer
from asymcir_server.encode.targets import TargetEncoder
from asymcir_server.encode.text_encoder import TextEncoder
from asymcir_server.encode.visual import VisualEncoder
from asymcir_training import Foundation, UnionHead, normalise_pixels
from numpy.typing import NDArray

from asymcir_export.checks.parity import check_parity, worst_storage
from asymcir_export.graphs.weight_storage import WeightStorage

_BATCH = 8
_ADVICE = "keep the weights more exactly: --storage fp16"
_SEED = 0
_MODIFIERS = (
    "",
    "is red",
    "has a blue hat and long sleeves",
    "is crying, but less sad",
    "shows two of them at night instead of one by day",
    "looks like a line drawing",
)


def check_server_parity(
    folder: Path,
    foundation: Foundation,
    union_head: UnionHead | None,
    pictures: Mapping[str, NDArray[np.uint8]],
    *,
    expected_images: NDArray[np.float32],
    text_storage: WeightStorage,
    visual_storage: WeightStorage,
    union_storage: WeightStorage,
) -> dict[str, Any]:
    """Compare a server bundle, opened by `asymcir_server`, with the foundation and the UNION head.

    Args:
        folder: the bundle, with its manifest.
        foundation: what the towers were made from.
        union_head: in eval mode; None for a bundle without one, whose targets are sums of what is compared anyway.
        pictures: name -> [h, w, 3] uint8, any size.
        expected_images: [b, E], their features by `embed_original`.
        text_storage: the leaner of the text tower's and the word-embedding table's.
        visual_storage: of the visual tower.
        union_storage: of the UNION head.

    Returns:
        Output name -> record, for the manifest.

    Raises:
        ParityError: a cosine below its threshold.
    """
    bundle = ServerBundle.load(folder)
    text_encoder, visual_encoder = TextEncoder(bundle), VisualEncoder(bundle)
    names = list(pictures)
    parity = {"text_features": _check_text(text_encoder, foundation, storage=text_storage)}
    found_images = np.concatenate(
        [visual_encoder.encode_image(batch) for batch in _prepare(list(pictures.values()), foundation)]
    )
    parity["image_features"] = check_parity(
        "image_features", expected_images, found_images, storage=visual_storage, pictures=names, advice=_ADVICE
    )
    if union_head is None:
        return parity
    parity |= check_union_head(
        bundle.union_session(), foundation, union_head, expected_images, storage=union_storage, pictures=names
    )
    with torch.inference_mode():
        targets, _ = union_head(torch.from_numpy(expected_images), _null(foundation, len(expected_images)))
    parity["target_end_to_end"] = check_parity(
        "target_end_to_end",
        targets.numpy(),
        TargetEncoder(bundle, text_encoder).compute_targets(found_images, "union"),
        storage=worst_storage(union_storage, text_storage, visual_storage),
        pictures=names,
        advice=_ADVICE,
        centred=True,
    )
    return parity


def check_union_head(
    session: ort.InferenceSession,
    foundation: Foundation,
    union_head: UnionHead,
    image_features: NDArray[np.float32],
    *,
    storage: WeightStorage,
    pictures: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare an exported UNION head with its original, on the same features and the same null text.

    Args:
        session: the head, opened as the server does.
        foundation: gives the null text.
        union_head: in eval mode.
        image_features: [b, E], of the foundation.
        storage: of the head's weights.
        pictures: names of the rows.

    Returns:
        The records of `target` and `gate`, for the manifest.

    Raises:
        ParityError: a target differs by more than that storage may.
    """
    null = _null(foundation, len(image_features))
    with torch.inference_mode():
        targets, gates = union_head(torch.from_numpy(image_features), null)
    feed = {"image_features": image_features, "text_features": np.ascontiguousarray(null.numpy())}
    found, found_gates = session.run(["target", "gate"], feed)
    return {
        "target": check_parity(
            "target", targets.numpy(), found, storage=storage, pictures=pictures, advice=f"{_ADVICE} (--union-storage)"
        ),
        "gate": {"max_abs_difference": float(np.abs(found_gates - gates.numpy()).max())},
    }


def embed_original(foundation: Foundation, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Run the foundation's visual tower over pictures of any size: [b, E], not normalised."""
    spec = foundation.preprocessing
    with torch.inference_mode():
        batches = [
            foundation.encode_pixels(normalise_pixels(torch.from_numpy(batch), spec))
            for batch in _prepare(pictures, foundation)
        ]
    features: NDArray[np.float32] = torch.cat(batches).numpy()
    return features


def _prepare(pictures: Sequence[NDArray[np.uint8]], foundation: Foundation) -> Iterator[NDArray[np.uint8]]:
    """Give pictures in batches [b, S, S, 3]."""
    for start in range(0, len(pictures), _BATCH):
        yield np.stack([preprocess(picture, foundation.preprocessing) for picture in pictures[start : start + _BATCH]])


def _null(foundation: Foundation, count: int) -> torch.Tensor:
    with torch.inference_mode():
        null = foundation.encode_null()  # [1, E]
        return null.expand(count, null.shape[-1])


def _check_text(text_encoder: TextEncoder, foundation: Foundation, *, storage: WeightStorage) -> dict[str, Any]:
    """Compare composed queries (words of the table as sentence tokens), plain texts and the null prompt."""
    generator = torch.Generator().manual_seed(_SEED)
    table = foundation.word_embedding_table()
    composer: Composer = text_encoder.composer
    modifiers = [text for text in _MODIFIERS if _fits(foundation, text)] * 2
    length = max(1, min(6, composer.max_sentence_length))
    picks = torch.randint(len(table), (len(modifiers), length), generator=generator)
    with torch.inference_mode():
        tokens = table[picks]  # [b, L, D]
        plain = [text for text in _MODIFIERS if text][:2]
        expected = torch.cat(
            [foundation.compose_query(tokens, modifiers), foundation.encode_text(plain), foundation.encode_null()]
        ).numpy()
    prompts = [composer.compose_query(row.numpy(), text) for row, text in zip(tokens, modifiers, strict=True)]
    prompts += [composer.compose_text(text) for text in plain] + [composer.compose_null()]
    found = np.concatenate([text_encoder.encode_prompts(prompts[:1]), text_encoder.encode_prompts(prompts[1:])])
    return check_parity("text_features", expected, found, storage=storage, advice=_ADVICE)


def _fits(foundation: Foundation, modifier: str) -> bool:
    """Whether a modifier leaves room for the template and six sentence tokens (it does not in a very short context)."""
    return len(foundation.tokenize(modifier)) + 16 <= foundation.context_length

"""The server bundle: towers, words, tokenizer and UNION head written, described and compared with their originals.

Notation: L sentence tokens, D word-embedding width, E joint-embedding width, S picture side, V words.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_common import Manifest, Preprocessing, preprocess, write_manifest
from asymcir_common.manifest import SERVER_BUNDLE
from asymcir_server.encode.sessions import open_session
from asymcir_server.encode.tokenizer import clean_text
from asymcir_training import PROMPTS, Foundation, UnionHead, normalise_pixels
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from asymcir_export.bundles.staging import Sources, refuse_existing, staged, write_graph
from asymcir_export.bundles.tokenizer_json import check_tokenizer, tokenizer_to_json
from asymcir_export.checks.parity import load_named_pictures, worst_storage
from asymcir_export.checks.server_answers import check_answers, open_device
from asymcir_export.checks.server_parity import check_server_parity, check_union_head, embed_original
from asymcir_export.errors import ExportError, ParityError
from asymcir_export.graphs.weight_storage import STORAGES, WeightStorage, quantize_rows
from asymcir_export.graphs.writer import batch_axis, length_axis, to_onnx
from asymcir_export.int8.quantize import TOLERANCE, Compute, is_convolutional, set_compute

_logger = logging.getLogger(__name__)

TEXT_FILE, VISUAL_FILE, UNION_FILE = "text_encoder.onnx", "visual_encoder.onnx", "union_head.onnx"
TABLE_FILE, SCALES_FILE, TOKENIZER_FILE = "word_embeddings.npy", "word_embedding_scales.npy", "tokenizer.json"

TABLE_STORAGES: tuple[WeightStorage, ...] = ("fp32", "fp16", "int8")


class _PictureTower(nn.Module):
    """[b, S, S, 3] uint8 -> image_features [b, E]."""

    def __init__(self, foundation: Foundation) -> None:
        super().__init__()
        self.foundation = foundation
        self.spec: Preprocessing = foundation.preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise and encode."""
        return self.foundation.encode_pixels(normalise_pixels(pixels, self.spec))


def export_server_bundle(
    foundation: Foundation,
    union_head: UnionHead | None,
    out: str | Path,
    *,
    pictures: str | Path,
    storage: WeightStorage = "fp32",
    union_storage: WeightStorage | None = None,
    table_storage: WeightStorage | None = None,
    text_compute: Compute = "fp32",
    visual_compute: Compute = "fp32",
    device: str | Path | None = None,
    search_set: str | Path | None = None,
    sources: Sources = (),
    force: bool = False,
) -> Manifest:
    """Write a server bundle.

    Its graphs: text encoder, `word_embeddings` float32 [b, T, D] -> `text_features` [b, E]; visual encoder, `pixels`
    uint8 [b, S, S, 3] -> `image_features` [b, E]; UNION head, both features [b, E] -> `target` [b, E] and `gate` [b].
    A tower of more than 2 GB has its weights in `FILE.onnx.data` beside its graph, which the manifest lists as well.
    All or nothing: the folder appears at `out` once everything in it was compared with the originals.

    Args:
        foundation: whose towers, words [V, D] and tokenizer it takes; put into eval mode.
        union_head: trained on that foundation's features; without one (None) the bundle offers the target types
            "original" and "sum" only.
        out: the bundle; must not exist, unless `force`.
        pictures: a folder of pictures to compare on.
        storage: how the two towers keep their weights.
        union_storage: of the UNION head; without it, `storage`. None where there is no head. A head that misses its
            thresholds in it is stored more exactly, with a warning; the manifest's `union` says what was `asked` for.
        table_storage: of the word-embedding table: "fp32", "fp16" or "int8"; without it `storage`, int8 for int4.
        text_compute, visual_compute: what the towers compute in: "fp32", "fp16", or "int8" (dynamic for transformers,
            static and calibrated on `pictures` for convolutional networks). Unless fp32, it is their storage too.
        device: a device bundle of the same foundation, to read the search set's pictures with.
        search_set: queries and gallery to measure R@10 with (see checks/search_set.py), against the same bundle in
            float32; needs `device`.
        sources: where the weights came from; `name`, `licence` and `url` each.
        force: replace an existing bundle.

    Returns:
        The manifest as written: sizes of files in bytes, `word_space`, `target_spaces`, and the `parity` of every part.

    Raises:
        ExportError: the output exists, a part cannot be exported, or the UNION head is of another width.
        TokenizerError: `tokenizer.json` would give other ids than open_clip's tokenizer.
        ParityError: an exported part is not the one it was made from, or R@10 fell by more than MAX_RECALL_LOSS.
        BundleError: the device bundle does not load.
    """
    out = Path(out)
    pictures = Path(pictures)
    device = None if device is None else Path(device)
    search_set = None if search_set is None else Path(search_set)
    refuse_existing(out, force=force)
    if union_head is None and union_storage is not None:
        raise ExportError("union_storage is of a UNION head, and there is none: pass one (--union), or leave it out")
    union_storage = union_storage or storage
    table_storage = table_storage or ("int8" if storage == "int4" else storage)
    if table_storage not in TABLE_STORAGES:
        raise ExportError(f"expected the table's storage as one of {list(TABLE_STORAGES)}, got {table_storage!r}")
    if union_head is not None and union_head.embedding_width != foundation.embedding_width:
        raise ExportError(
            f"the UNION head is {union_head.embedding_width} wide, {foundation.name} gives features of width "
            f"{foundation.embedding_width}: pass the head that was trained on this foundation"
        )
    if union_head is not None:
        union_head = union_head.eval()
    reader = None if search_set is None else open_device(device, search_set, foundation.word_space())
    chosen = load_named_pictures(pictures)
    with staged(out, force=force) as folder, _float32_beside(folder, wanted=reader is not None) as original:
        tokenizer = tokenizer_to_json(foundation.open_clip_tokenizer)
        _logger.info("comparing tokenizer.json with open_clip's tokenizer")
        token_parity = check_tokenizer(
            tokenizer, foundation.open_clip_tokenizer, lambda text: clean_text(text, foundation.text_clean)
        )
        squares = [preprocess(picture, foundation.preprocessing)[None] for picture in chosen.values()]
        _write_tower(_export_text(foundation), TEXT_FILE, folder, original, storage, text_compute)
        visual = _export_visual(foundation)
        convolutional = is_convolutional(visual)
        _write_tower(visual, VISUAL_FILE, folder, original, storage, visual_compute, squares)
        del visual  # a large one weighs gigabytes
        union = None if union_head is None else _export_union(union_head)
        table = foundation.word_embedding_table()
        properties: dict[str, Any] = {
            "word_space": foundation.word_space(),
            "target_spaces": foundation.target_spaces(union_head),
            "text": {
                "file": TEXT_FILE,
                "word_embeddings": TABLE_FILE,
                "word_embedding_scales": None,
                "context_length": foundation.context_length,
                "word_width": foundation.word_width,
                "embedding_width": foundation.embedding_width,
                "causal": foundation.causal,
                "start_ids": foundation.start_ids,
                "end_ids": foundation.end_ids,
                "pad_id": foundation.pad_id,
            },
            "tokenizer": {"file": TOKENIZER_FILE, "clean": foundation.text_clean},
            "prompts": dict(PROMPTS),
            "visual": {
                "file": VISUAL_FILE,
                "preprocessing": foundation.preprocessing.to_json(),
                "convolutional": convolutional,
            },
            "foundation": foundation.name,
        }
        if union is not None:
            properties["union"] = {"file": UNION_FILE}
        if original is not None:
            (original / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
            if union is not None:
                write_graph(union, original / UNION_FILE, "fp32")
            _write_table(table, original, "fp32")
            write_manifest(original, format=SERVER_BUNDLE, properties=properties)
        (folder / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
        features = embed_original(foundation, list(chosen.values()))
        if union is not None and union_head is not None:
            asked = union_storage
            union_storage = _store_union(union, folder / UNION_FILE, foundation, union_head, features, asked=asked)
            properties["union"]["asked"] = asked
        properties["text"]["word_embedding_scales"] = _write_table(table, folder, table_storage)
        properties["weight_storage"] = {
            TEXT_FILE: storage if text_compute == "fp32" else text_compute,
            VISUAL_FILE: storage if visual_compute == "fp32" else visual_compute,
            **({} if union is None else {UNION_FILE: union_storage}),
            TABLE_FILE: table_storage,
        }
        properties["compute"] = {TEXT_FILE: text_compute, VISUAL_FILE: visual_compute}
        write_manifest(folder, format=SERVER_BUNDLE, properties=properties, sources=sources)
        _logger.info("comparing with the originals on %d pictures", len(chosen))
        parity = check_server_parity(
            folder,
            foundation,
            union_head,
            chosen,
            expected_images=features,
            text_storage=worst_storage(table_storage, storage if text_compute == "fp32" else TOLERANCE[text_compute]),
            visual_storage=storage if visual_compute == "fp32" else TOLERANCE[visual_compute],
            union_storage=union_storage,
        )
        parity["tokenizer"] = token_parity
        if search_set is not None and reader is not None and original is not None:
            _logger.info("searching %s before and after", search_set.name)
            parity["answers"] = check_answers(search_set, reader, original=original, leaner=folder)
        return write_manifest(folder, format=SERVER_BUNDLE, properties=properties, sources=sources, parity=parity)


def _write_tower(
    graph: ModelProto,
    file: str,
    folder: Path,
    original: Path | None,
    storage: WeightStorage,
    compute: Compute,
    squares: Sequence[NDArray[np.uint8]] = (),
) -> None:
    """Write a tower as asked for and, where an original is wanted, in float32."""
    if original is not None:
        write_graph(graph, original / file, "fp32")
    graph = set_compute(graph, compute, input_name="pixels", samples=squares)
    write_graph(graph, folder / file, storage if compute == "fp32" else "fp32")


@contextmanager
def _float32_beside(folder: Path, *, wanted: bool) -> Iterator[Path | None]:
    """Give a temporary folder beside the bundle's for the same bundle in float32, None where it is not wanted."""
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", suffix=".fp32", dir=folder.parent) as name:
        yield Path(name)


def _export_text(foundation: Foundation) -> ModelProto:
    batch, length = batch_axis(), length_axis(foundation.context_length)
    rows, width = 2, min(9, foundation.context_length)
    return to_onnx(
        foundation.text.eval(),
        {
            "word_embeddings": torch.zeros(rows, width, foundation.word_width),
            "attention_mask": torch.ones(rows, width, dtype=torch.int64),
            "pool_index": torch.full((rows,), width - 1, dtype=torch.int64),
        },
        outputs=["text_features"],
        axes={
            "word_embeddings": {0: batch, 1: length},
            "attention_mask": {0: batch, 1: length},
            "pool_index": {0: batch},
        },
    )


def _export_visual(foundation: Foundation) -> ModelProto:
    size = foundation.preprocessing.size
    return to_onnx(
        _PictureTower(foundation).eval(),
        {"pixels": torch.zeros(2, size, size, 3, dtype=torch.uint8)},
        outputs=["image_features"],
        axes={"pixels": {0: batch_axis()}},
    )


def _export_union(union_head: UnionHead) -> ModelProto:
    batch = batch_axis()
    width = union_head.embedding_width
    return to_onnx(
        union_head,
        {"image_features": torch.ones(2, width), "text_features": torch.zeros(2, width)},
        outputs=["target", "gate"],
        axes={"image_features": {0: batch}, "text_features": {0: batch}},
    )


def _store_union(
    graph: ModelProto,
    path: Path,
    foundation: Foundation,
    union_head: UnionHead,
    features: NDArray[np.float32],
    *,
    asked: WeightStorage,
) -> WeightStorage:
    """Write the UNION head as leanly as asked for, or as its thresholds allow; return how.

    The targets of a head that was trained for a few steps barely spread, and what int4 adds may then be more than that.

    Raises:
        ParityError: it differs in float32 too, so it is not the storage.
    """
    for storage in reversed(STORAGES[: STORAGES.index(asked) + 1]):
        write_graph(graph, path, storage)
        session = open_session(path, threads=0, compute="fp32", convolutional=False)
        try:
            check_union_head(session, foundation, union_head, features, storage=storage)
        except ParityError as exc:
            if storage == "fp32":
                raise
            _logger.warning("the UNION head is stored more exactly than as %s: %s", storage, exc.difference)
        else:
            return storage
    raise AssertionError("fp32 returns or raises")


def _write_table(table: Tensor, folder: Path, storage: WeightStorage) -> str | None:
    """Write the word-embedding table [V, D]; returns the file of its scales, None without scales."""
    rows = table.detach().to(dtype=torch.float32, device="cpu").numpy()
    if storage == "int8":
        values, scales = quantize_rows(rows)
        np.save(folder / TABLE_FILE, values)
        np.save(folder / SCALES_FILE, scales)
        return SCALES_FILE
    np.save(folder / TABLE_FILE, rows.astype(np.float16) if storage == "fp16" else rows)
    return None

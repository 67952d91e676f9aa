"""Bundles: every part written, described in a manifest, compared with its original, and only then put in place.

A bundle is written to a temporary folder beside its place and renamed when all is well; whatever fails before leaves
nothing behind.

Notation: L sentence tokens, D word-embedding width, E joint-embedding width, S picture side, V words.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_protos import Manifest, Preprocessing, preprocess, write_manifest
from asymcir_protos.manifest import DEVICE_BUNDLE, SERVER_BUNDLE
from asymcir_server.tokenizer import clean_text
from asymcir_training import PROMPTS, Foundation, LightEncoder, UnionHead, normalise_pixels
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from asymcir_export.device_graph import build_network_graph, join_preprocessing
from asymcir_export.errors import ExportError
from asymcir_export.golden import find_pictures, write_golden
from asymcir_export.lean import WeightStorage, quantize_rows, store_lean
from asymcir_export.onnx_writer import batch_axis, length_axis, to_onnx, write_onnx
from asymcir_export.parity import (
    check_device_parity,
    check_server_parity,
    encode_original,
    load_pictures,
    worst_storage,
)
from asymcir_export.quantize import TOLERANCE, Compute, is_convolutional, set_compute
from asymcir_export.server_gate import check_answers, open_device
from asymcir_export.tokenizer_json import check_tokenizer, tokenizer_to_json
from asymcir_export.variants import VARIANTS, Source, check_variants, describe_variants, split_pictures
from asymcir_export.worth import SearchSet

_logger = logging.getLogger(__name__)

ENCODER_FILE = "encoder.onnx"
TEXT_FILE, VISUAL_FILE, UNION_FILE = "text_encoder.onnx", "visual_encoder.onnx", "union_head.onnx"
TABLE_FILE, SCALES_FILE, TOKENIZER_FILE = "word_embeddings.npy", "word_embedding_scales.npy", "tokenizer.json"

DEVICE_PICTURES = 384
"""Taken from the folder for a device bundle: two thirds to compare on, one third to calibrate int8 on."""

DEVICE_STORAGES: tuple[WeightStorage, ...] = ("fp32", "fp16", "int8")
TABLE_STORAGES: tuple[WeightStorage, ...] = ("fp32", "fp16", "int8")

Sources = Sequence[Mapping[str, str]]


class _PictureTower(nn.Module):
    """[b, S, S, 3] uint8 -> image_features [b, E]."""

    def __init__(self, foundation: Foundation) -> None:
        super().__init__()
        self.foundation = foundation
        self.spec: Preprocessing = foundation.preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise and encode."""
        return self.foundation.encode_pixels(normalise_pixels(pixels, self.spec))


def export_device_bundle(
    encoder: LightEncoder,
    out: Path,
    *,
    word_space: str,
    foundation: str,
    pictures: Path,
    storage: WeightStorage = "fp32",
    variants: Sequence[str] = VARIANTS,
    server: Path | None = None,
    search_set: Path | None = None,
    sources: Sources = (),
    force: bool = False,
) -> Manifest:
    """Write a device bundle.

    A variant that fails its gate is left out, and the manifest (`variants`) and `report.html` say why.

    Args:
        encoder: the trained light encoder.
        out: the bundle; must not exist, unless `force`.
        word_space: of the foundation that it was trained against.
        foundation: that foundation's name, for people.
        pictures: a folder of pictures to compare on; a few of them go into the bundle as golden ones.
        storage: how `encoder.onnx` keeps its weights: "fp32", "fp16" or "int8".
        variants: further precisions and formats, of VARIANTS; see variants.py.
        server: a server bundle of the same foundation, to search with.
        search_set: queries and gallery to measure R@10 with (see worth.py); needs `server`.
        sources: where the weights came from; `name`, `licence` and `url` each.
        force: replace an existing bundle.

    Raises:
        ExportError: the output exists, or a part cannot be exported.
        ParityError: the exported encoder is not the one it was made from.
    """
    if storage not in DEVICE_STORAGES:
        raise ExportError(f"expected the device encoder's storage as one of {list(DEVICE_STORAGES)}, got {storage!r}")
    check_variants(variants)
    encoder = encoder.eval()
    compared, calibration = split_pictures(load_pictures(pictures, limit=DEVICE_PICTURES))
    queries = None if search_set is None else _open_search_set(search_set, server, word_space)
    with _staged(out, force=force) as folder:
        size = encoder.preprocessing.size
        network = build_network_graph(encoder, torch.zeros(1, 3, size, size))
        _write(join_preprocessing(network, encoder.preprocessing), folder / ENCODER_FILE, storage)
        properties: dict[str, Any] = {
            "word_space": word_space,
            "sentence_length": encoder.sentence_length,
            "word_width": encoder.word_width,
            "preprocessing": encoder.preprocessing.to_json(),
            "encoders": {"fp32": ENCODER_FILE},
            "default_encoder": "fp32",
            "weight_storage": storage,
            "foundation": foundation,
        }
        write_manifest(folder, format=DEVICE_BUNDLE, properties=properties, sources=sources)
        _logger.info("comparing with the original on %d pictures", len(compared))
        parity = check_device_parity(folder, encoder, compared, storage=storage)
        if variants:
            source = Source(
                encoder=encoder,
                network=network,
                compared=compared,
                expected=encode_original(encoder, compared),
                calibration=calibration,
                search_set=queries,
                original=None if queries is None else queries.search(encode_original(encoder, queries.pictures)),
            )
            title = f"{out.name}: {foundation}"
            properties |= describe_variants(folder, source, variants, storage=storage, title=title)
            write_manifest(folder, format=DEVICE_BUNDLE, properties=properties, sources=sources)
        properties["golden"] = write_golden(folder, encoder, find_pictures(pictures))
        return write_manifest(folder, format=DEVICE_BUNDLE, properties=properties, sources=sources, parity=parity)


def _open_search_set(folder: Path, server: Path | None, word_space: str) -> SearchSet:
    if server is None:
        raise ExportError(f"the search set {folder} needs a server bundle to search with: pass one (--server)")
    found = SearchSet(folder, server)
    if found.word_space != word_space:
        raise ExportError(
            f"the server bundle {server} is of word_space {found.word_space[:12]}, the encoder of {word_space[:12]}: "
            "pass a server bundle that was exported from the encoder's foundation"
        )
    return found


def export_server_bundle(
    foundation: Foundation,
    union_head: UnionHead,
    out: Path,
    *,
    pictures: Path,
    storage: WeightStorage = "fp32",
    union_storage: WeightStorage | None = None,
    table_storage: WeightStorage | None = None,
    text_compute: Compute = "fp32",
    visual_compute: Compute = "fp32",
    device: Path | None = None,
    search_set: Path | None = None,
    sources: Sources = (),
    force: bool = False,
) -> Manifest:
    """Write a server bundle.

    A tower of more than 2 GB has its weights in `FILE.onnx.data` beside its graph, which the manifest lists as well.

    Args:
        foundation: whose towers, words and tokenizer it takes.
        union_head: trained on that foundation's features.
        out: the bundle; must not exist, unless `force`.
        pictures: a folder of pictures to compare on.
        storage: how the two towers keep their weights.
        union_storage: of the UNION head; without it, `storage`.
        table_storage: of the word-embedding table: "fp32", "fp16" or "int8"; without it `storage`, int8 for int4.
        text_compute, visual_compute: what the towers compute in: "fp32", "fp16", or "int8" (dynamic for transformers,
            static and calibrated on `pictures` for convolutional networks). Unless fp32, it is their storage too.
        device: a device bundle of the same foundation, to read the search set's pictures with.
        search_set: queries and gallery to measure R@10 with (see worth.py), against the same bundle in float32; needs
            `device`.
        sources: where the weights came from; `name`, `licence` and `url` each.
        force: replace an existing bundle.

    Raises:
        ExportError: the output exists, a part cannot be exported, or the UNION head is of another width.
        TokenizerError: `tokenizer.json` would give other ids than open_clip's tokenizer.
        ParityError: an exported part is not the one it was made from, or R@10 fell by more than MAX_RECALL_LOSS.
    """
    union_storage = union_storage or storage
    table_storage = table_storage or ("int8" if storage == "int4" else storage)
    if table_storage not in TABLE_STORAGES:
        raise ExportError(f"expected the table's storage as one of {list(TABLE_STORAGES)}, got {table_storage!r}")
    if union_head.embedding_width != foundation.embedding_width:
        raise ExportError(
            f"the UNION head is {union_head.embedding_width} wide, {foundation.name} gives features of width "
            f"{foundation.embedding_width}: pass the head that was trained on this foundation"
        )
    union_head = union_head.eval()
    reader = None if search_set is None else open_device(device, search_set, foundation.word_space())
    chosen = load_pictures(pictures)
    with _staged(out, force=force) as folder, _float32_beside(folder, wanted=reader is not None) as original:
        tokenizer = tokenizer_to_json(foundation.open_clip_tokenizer)
        _logger.info("comparing tokenizer.json with open_clip's tokenizer")
        token_parity = check_tokenizer(
            tokenizer, foundation.open_clip_tokenizer, lambda text: clean_text(text, foundation.text_clean)
        )
        squares = [preprocess(picture, foundation.preprocessing)[None] for picture in chosen]
        _write_tower(_export_text(foundation), TEXT_FILE, folder, original, storage, text_compute)
        visual = _export_visual(foundation)
        convolutional = is_convolutional(visual)
        _write_tower(visual, VISUAL_FILE, folder, original, storage, visual_compute, squares)
        del visual  # a large one weighs gigabytes
        union = _export_union(union_head)
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
            "union": {"file": UNION_FILE},
            "foundation": foundation.name,
        }
        if original is not None:
            (original / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
            _write(union, original / UNION_FILE, "fp32")
            _write_table(table, original, "fp32")
            write_manifest(original, format=SERVER_BUNDLE, properties=properties)
        (folder / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
        _write(union, folder / UNION_FILE, union_storage)
        properties["text"]["word_embedding_scales"] = _write_table(table, folder, table_storage)
        properties["weight_storage"] = {
            TEXT_FILE: storage if text_compute == "fp32" else text_compute,
            VISUAL_FILE: storage if visual_compute == "fp32" else visual_compute,
            UNION_FILE: union_storage,
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
        _write(graph, original / file, "fp32")
    graph = set_compute(graph, compute, input_name="pixels", samples=squares)
    _write(graph, folder / file, storage if compute == "fp32" else "fp32")


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


def _write(model: ModelProto, path: Path, storage: WeightStorage) -> None:
    write_onnx(store_lean(model, storage), path)
    size_bytes = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
    _logger.info("wrote %s, %s, %.1f MB", path.name, storage, size_bytes / 1e6)


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


@contextmanager
def _staged(out: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes its place when the block ends well, and vanishes otherwise."""
    if out.exists() and not force:
        raise ExportError(f"{out} exists: choose another --out, or pass --force to replace it")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file: choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        folder.chmod(0o755)
        yield folder
        if out.exists():
            old = folder.with_suffix(".old")
            out.rename(old)
            folder.rename(out)
            shutil.rmtree(old)
        else:
            folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""The device bundle: the light encoder in every precision and format, compared with the original, with golden pictures.

Notation: L sentence tokens, D word-embedding width, S picture side.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from asymcir_common import Manifest, decode_image, preprocess, write_manifest
from asymcir_common.manifest import DEVICE_BUNDLE
from asymcir_common.places import find_pictures
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_training import LightEncoder
from onnx import ModelProto

from asymcir_export.bundles.golden import choose_pictures, write_golden
from asymcir_export.bundles.staging import Sources, refuse_existing, staged, write_graph
from asymcir_export.bundles.token_report import describe_tokens
from asymcir_export.bundles.variants import VARIANTS, Source, check_variants, describe_variants, split_pictures
from asymcir_export.checks.parity import check_device_parity, encode_original, load_named_pictures
from asymcir_export.checks.search_set import MAX_RECALL_LOSS, SearchSet
from asymcir_export.errors import ExportError, ParityError
from asymcir_export.graphs.cost import measure_cost
from asymcir_export.graphs.device_graph import build_network_graph, join_preprocessing
from asymcir_export.graphs.weight_storage import WeightStorage

ENCODER_FILE = "encoder.onnx"
DEVICE_PICTURES = 384
"""Taken from the folder for a device bundle: two thirds to compare on, one third to calibrate int8 on."""
DEVICE_STORAGES: tuple[WeightStorage, ...] = ("fp32", "fp16", "int8")
_LOG = logging.getLogger(__name__)


def export_device_bundle(
    encoder: LightEncoder,
    out: str | Path,
    *,
    word_space: str,
    foundation: str,
    pictures: str | Path,
    storage: WeightStorage = "fp32",
    variants: Sequence[str] = VARIANTS,
    server: str | Path | None = None,
    search_set: str | Path | None = None,
    sources: Sources = (),
    force: bool = False,
) -> Manifest:
    """Write a device bundle.

    Its graphs take `pixels` uint8 [height, width, 3], RGB, of any size, and give `sentence_tokens` float32 [L, D] and
    `attention_maps` float32 [L, h, w]. How different the tokens are is measured; where they are nearly one, log,
    manifest (`token_diversity`) and report say so.
    All or nothing: the folder appears at `out` once everything in it was compared with the original. A variant that
    misses its thresholds is left out, and the manifest (`variants`) and `report.html` say why and name the picture
    that came out worst.

    Args:
        encoder: the trained light encoder, normalised pixels [b, 3, S, S] -> sentence tokens [b, L, D]; put into eval
            mode.
        out: the bundle; must not exist, unless `force`.
        word_space: of the foundation that it was trained against, `Foundation.word_space()`.
        foundation: that foundation's name, for people.
        pictures: a folder, searched recursively, of pictures to compare on, DEVICE_PICTURES at most and two at least;
            a few of them go into the bundle as golden ones, so they must be fit to be passed on.
        storage: how `encoder.onnx` keeps its weights: "fp32", "fp16" or "int8"; it computes in float32.
        variants: further precisions and formats, of VARIANTS (see variants.py); none for `encoder.onnx` alone.
        server: a server bundle of the same foundation, to search with.
        search_set: queries and gallery to measure R@10 with (see checks/search_set.py); needs `server`.
        sources: where the weights came from; `name`, `licence` and `url` each.
        force: replace an existing bundle.

    Returns:
        The manifest as written: sizes of files in bytes; among the properties `parameters`, `macs` of one picture, and
        by variant `size_mb`, `latency_ms_median` and `latency_ms_p95` on one thread of this machine; `parity`.

    Raises:
        ExportError: the output exists, there are too few pictures, or a part cannot be exported.
        ParityError: the exported encoder is not the one it was made from.
        BundleError: the server bundle does not load.
    """
    out = Path(out)
    pictures = Path(pictures)
    server = None if server is None else Path(server)
    search_set = None if search_set is None else Path(search_set)
    refuse_existing(out, force=force)
    if storage not in DEVICE_STORAGES:
        raise ExportError(f"expected the device encoder's storage as one of {list(DEVICE_STORAGES)}, got {storage!r}")
    check_variants(variants)
    encoder = encoder.eval()
    named, kept_back = split_pictures(list(load_named_pictures(pictures, limit=DEVICE_PICTURES).items()))
    compared, calibration = dict(named), [picture for _, picture in kept_back]
    queries = None if search_set is None else _open_search_set(search_set, server, word_space)
    with staged(out, force=force) as folder:
        size = encoder.preprocessing.size
        network = build_network_graph(encoder, torch.zeros(1, 3, size, size))
        write_graph(join_preprocessing(network, encoder.preprocessing), folder / ENCODER_FILE, storage)
        properties: dict[str, Any] = {
            "word_space": word_space,
            "sentence_length": encoder.sentence_length,
            "word_width": encoder.word_width,
            "preprocessing": encoder.preprocessing.to_json(),
            "encoders": {"fp32": ENCODER_FILE},
            "default_encoder": "fp32",
            "weight_storage": storage,
            "foundation": foundation,
            **_describe_cost(network),
        }
        write_manifest(folder, format=DEVICE_BUNDLE, properties=properties, sources=sources)
        _LOG.info("comparing with the original on %d pictures", len(compared))
        parity = check_device_parity(folder, encoder, compared, storage=storage)
        files = find_pictures(pictures)
        golden = choose_pictures(files, side=2 * size).values()
        shown = [preprocess(decode_image(data), encoder.preprocessing) for data in golden]
        exported = QueryEncoder(DeviceBundle.load(folder))
        properties["token_diversity"], section = describe_tokens(exported, list(compared.values()), shown)
        if variants:
            source = Source(
                encoder=encoder,
                network=network,
                compared=list(compared.values()),
                expected=encode_original(encoder, list(compared.values())),
                calibration=calibration,
                names=list(compared),
                search_set=queries,
                original=None if queries is None else queries.search(encode_original(encoder, queries.pictures)),
            )
            title = f"{out.name}: {foundation}"
            properties |= describe_variants(folder, source, variants, storage=storage, title=title, sections=[section])
            _check_recall(properties["variants"]["fp32"])
            write_manifest(folder, format=DEVICE_BUNDLE, properties=properties, sources=sources)
        properties["golden"] = write_golden(folder, encoder, files)
        return write_manifest(folder, format=DEVICE_BUNDLE, properties=properties, sources=sources, parity=parity)


def _describe_cost(network: ModelProto) -> dict[str, int]:
    """Return `parameters` and `macs` of the float32 network for the manifest; nothing where they cannot be counted."""
    try:
        return asdict(measure_cost(network))
    except ExportError as exc:
        _LOG.warning("the manifest does not say what the network costs: %s", exc)
        return {}


def _check_recall(record: Mapping[str, Any]) -> None:
    """Refuse an encoder that loses R@10 for certain; warn where it may be by chance.

    Rounding in the resize turns over a few answers of a young model in both directions, so the loss itself decides
    nothing here: MAX_RECALL_LOSS is held against the upper end of its 95% interval.

    Args:
        record: of `encoder.onnx`, as `measure_onnx` makes it; without a search set nothing is judged.

    Raises:
        ParityError: R@10 fell by more than MAX_RECALL_LOSS.
    """
    if record.get("recall_at_10_change", 0.0) >= -MAX_RECALL_LOSS:
        return
    low, high = record["recall_at_10_change_interval"]
    what = (
        f"R@10 of {record['queries']} composed queries fell from {record['recall_at_10_original']:.4f} to "
        f"{record['recall_at_10']:.4f} (95%: {low:+.4f} to {high:+.4f}), at most {MAX_RECALL_LOSS} may be lost"
    )
    if high < -MAX_RECALL_LOSS:
        raise ParityError(f"{ENCODER_FILE}: {what}")
    _LOG.warning("%s: %s; this may be chance, so the bundle is written", ENCODER_FILE, what)


def _open_search_set(folder: Path, server: Path | None, word_space: str) -> SearchSet:
    if server is None:
        raise ExportError(f"the search set {folder} needs a server bundle to search with: pass one (--server-bundle)")
    found = SearchSet(folder, server)
    if found.word_space != word_space:
        raise ExportError(
            f"the server bundle {server} is of word_space {found.word_space[:12]}, the encoder of {word_space[:12]}: "
            "pass a server bundle that was exported from the encoder's foundation"
        )
    return found

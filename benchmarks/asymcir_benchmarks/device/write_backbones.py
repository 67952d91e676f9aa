"""Phone-class backbones through every writer: what each weighs, and whether it comes out as it went in.

    python -m asymcir_benchmarks.device.write_backbones --out FOLDER --pictures FOLDER

Each is built as a light encoder of random weights (speed, size and parity do not need trained ones), written as ONNX
in fp32, fp16 and int8 and as Core ML fp16, and compared with PyTorch. `timing` times what is written here, `arm_count`
counts its instructions: every ONNX file is there once more without the preprocessing, as the peers are.

Lower precision of random weights says nothing about accuracy: its files are written for their size and speed.

Notation: S picture side, L sentence tokens, D word-embedding width.
"""

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_common import AsymcirError, preprocess
from asymcir_common.arguments import MAX_SIDE, ArgumentParser, whole_number
from asymcir_common.files import write_atomically
from asymcir_export.bundles.variants import Source, measure_onnx
from asymcir_export.checks.parity import encode_original, load_pictures
from asymcir_export.coreml.check import check_coreml
from asymcir_export.coreml.compression import package_size_bytes
from asymcir_export.coreml.writer import write_coreml
from asymcir_export.errors import ExportError
from asymcir_export.graphs.cost import measure_cost
from asymcir_export.graphs.device_graph import (
    INPUT_NAME,
    PREPROCESSING_PREFIX,
    build_network_graph,
    build_preprocessing_graph,
    cut_preprocessing,
    join_preprocessing,
)
from asymcir_export.graphs.writer import IR_VERSION, OPSET, write_onnx
from asymcir_export.int8.quantize import quantize_static_int8, to_fp16
from asymcir_training import LightEncoder, normalise_pixels
from asymcir_training.foundation.preprocessing import imagenet_preprocessing
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from asymcir_benchmarks.device.write_peers import MOBILECLIP_S0, write_peer

BACKBONES = (
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "mobilenetv4_conv_small_050",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "repvit_m0_9",
    "fastvit_t8",
    "mobilevitv2_050",
    "tiny_vit_5m_224",
)
FACTS_FILE = "backbones.json"
FORMAT = 3
"""Raised when other files or graphs are written, so that a folder of older ones is not taken for done."""

ENCODER_FILES = {"fp32": "encoder.onnx", "fp16": "encoder.fp16.onnx", "int8": "encoder.int8.onnx"}
NETWORK_FILES = {"fp32": "network.onnx", "fp16": "network.fp16.onnx", "int8": "network.int8.onnx"}
PREPROCESSING_FILE = "preprocessing.onnx"
TOKEN_LEARNER_WIDTH = 256
SENTENCE_LENGTH, WORD_WIDTH = 6, 768
"""The words of CLIP ViT-L/14's text tower are 768 wide."""

BACKBONE_SIZE = 224
_COREML_PICTURES = 4
_SEED = 0
_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.device.write_backbones", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for each backbone is written below it")
    parser.add_argument("--pictures", type=Path, required=True, help="to compare and to calibrate int8 on")
    parser.add_argument("--backbone", action="append", help=f"timm backbone (default: {', '.join(BACKBONES)})")
    parser.add_argument(
        "--size", type=whole_number(1, MAX_SIDE), default=BACKBONE_SIZE, help="of their pictures (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write every backbone that is not there yet, and what was found."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _LOG.setLevel(logging.INFO)
    try:
        pictures = load_pictures(args.pictures)
        args.out.mkdir(parents=True, exist_ok=True)
        if not (args.out / f"{MOBILECLIP_S0.file}.int8.onnx").is_file():
            write_peer(MOBILECLIP_S0, args.out, pictures)
        write_int8_product(args.out / "int8-product.onnx")
        write_onnx(build_preprocessing_graph(imagenet_preprocessing(args.size)), args.out / PREPROCESSING_FILE)
        for name in args.backbone or BACKBONES:
            done = args.out / name / FACTS_FILE
            if not is_written(done, args.size):
                facts = write_backbone(name, args.out / name, pictures, size=args.size)
                write_atomically(done, json.dumps(facts, indent=2) + "\n")
            _LOG.info("%s: %s", name, json.loads(done.read_text(encoding="utf-8")))
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def write_backbone(name: str, folder: Path, pictures: Sequence[NDArray[np.uint8]], *, size: int) -> dict[str, Any]:
    """Write ENCODER_FILES, NETWORK_FILES and `encoder.mlpackage` of one backbone.

    The encoders take a picture [height, width, 3] uint8 of any size, as in a device bundle, the networks
    `normalised_pixels` [1, 3, S, S]; both give sentence tokens [L, D].

    Args:
        name: timm backbone.
        folder: to write to.
        pictures: [h, w, 3] uint8 each, any size.
        size: S.

    Returns:
        `format`, `parameters`, `macs` of one picture (where they can be counted), `size`, `width` of the token learner,
        and by writer ("onnx", "fp16", "int8", "coreml")
        `size_mb`, and of those that are compared with PyTorch whether they are `verified` or the `reason` why not.

    Raises:
        FoundationError: timm has no such backbone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder = build_encoder(name, size=size)
    spec = encoder.preprocessing
    squares = [preprocess(picture, spec) for picture in pictures]
    set_batch_statistics(encoder, squares)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "parameters": sum(value.numel() for value in encoder.parameters()),
        "size": size,
        "width": TOKEN_LEARNER_WIDTH,
    }
    try:
        network = build_network_graph(encoder, torch.zeros(1, 3, size, size))
        facts |= _count(name, network)
        graph = join_preprocessing(network, spec)
        _write_both(graph, folder, "fp32", size)
        expected = encode_original(encoder, squares)
        source = Source(encoder=encoder, network=network, compared=squares, expected=expected, calibration=pictures)
        record = measure_onnx(folder / ENCODER_FILES["fp32"], source, "fp32")
        facts["onnx"] = {"verified": True, "cosine_min": record["cosine_min"], "size_mb": record["size_mb"]}
        half = join_preprocessing(to_fp16(network), spec)
        facts["fp16"] = {"size_mb": _write_both(half, folder, "fp16", size)}
        int8 = quantize_static_int8(graph, INPUT_NAME, pictures, keep_float=[PREPROCESSING_PREFIX])
        facts["int8"] = {"size_mb": _write_both(int8, folder, "int8", size)}
    except ExportError as exc:
        writer = next(name for name in ("onnx", "fp16", "int8") if name not in facts)
        facts[writer] = {"verified": False, "reason": str(exc)}
    try:
        package = folder / "encoder.mlpackage"
        shutil.rmtree(package, ignore_errors=True)
        write_coreml(encoder, spec, package)
        record = check_coreml(package, encoder, spec, squares[:_COREML_PICTURES])
        facts["coreml"] = {
            "verified": True,
            "cosine_min": record["cosine_min"],
            "size_mb": package_size_bytes(package) / 1e6,
        }
    except ExportError as exc:
        facts["coreml"] = {"verified": False, "reason": str(exc)}
    return facts


def _count(name: str, network: ModelProto) -> dict[str, int]:
    try:
        return {"macs": measure_cost(network).macs}
    except ExportError as exc:
        _LOG.warning("%s: %s", name, exc)
        return {}


def is_written(facts_file: Path, size: int) -> bool:
    """Whether a backbone was written for this size by this version of the writer."""
    if not facts_file.is_file():
        return False
    facts = json.loads(facts_file.read_text(encoding="utf-8"))
    return bool(facts.get("format") == FORMAT and facts["size"] == size)


def build_encoder(name: str, *, size: int) -> LightEncoder:
    """Build a light encoder of random weights for pictures of this size, with ViT-L/14's words.

    Raises:
        FoundationError: timm has no such backbone.
    """
    torch.manual_seed(_SEED)
    return LightEncoder(
        name,
        sentence_length=SENTENCE_LENGTH,
        word_width=WORD_WIDTH,
        width=TOKEN_LEARNER_WIDTH,
        preprocessing=imagenet_preprocessing(size),
    )


def _write_both(graph: ModelProto, folder: Path, precision: str, size: int) -> float:
    """Write a graph with and without its preprocessing; return the size of the former, MB."""
    write_onnx(cut_preprocessing(graph, size), folder / NETWORK_FILES[precision])
    whole = folder / ENCODER_FILES[precision]
    write_onnx(graph, whole)
    return whole.stat().st_size / 1e6


def write_int8_product(path: Path) -> None:
    """Write a dense int8 product, [512, 1024] by constant [1024, 1024]: what a machine's int8 peak is measured with."""
    weight = np.random.default_rng(_SEED).integers(-127, 128, (1024, 1024)).astype(np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["rows", "weight"], ["product"])],
        "int8-product",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, [512, 1024])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [512, 1024])],
        [numpy_helper.from_array(weight, "weight")],
    )
    write_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)


@torch.no_grad()
def set_batch_statistics(encoder: LightEncoder, squares: Sequence[NDArray[np.uint8]]) -> None:
    """Give the batch norms of a random network the statistics of real pictures; without, activations die or explode."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches
    encoder.train()
    for start in range(0, len(squares), 8):
        encoder(normalise_pixels(torch.from_numpy(np.stack(squares[start : start + 8])), encoder.preprocessing))
    encoder.eval()


if __name__ == "__main__":
    sys.exit(main())

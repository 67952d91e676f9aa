"""What a user would run instead, on the phone and on the server, as ONNX files of random weights.

    python -m asymcir_benchmarks.device.write_peers --out FOLDER --pictures FOLDER [--vit-l14]

For measuring cost alone: time and instructions do not depend on what the weights are. The weights of MobileCLIP are
licensed for research only, so they are not used, not even for this.

Each is written in fp32 and, where it is meant for a phone, in static int8 (QDQ, per channel), which is calibrated on
real pictures. The backbones to choose from are written by `asymcir_benchmarks.device.write_backbones`.

Notation: S picture side, E joint-embedding width.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from asymcir_common import AsymcirError, Preprocessing, preprocess
from asymcir_common.arguments import ArgumentParser
from asymcir_export.checks.parity import load_pictures
from asymcir_export.graphs.writer import to_onnx, write_onnx
from asymcir_export.int8.quantize import quantize_static_int8
from numpy.typing import NDArray
from timm.utils.model import reparameterize_model

_TENSOR = "normalised_pixels"
_SEED = 0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """An image tower that others run, on the phone or on the server.

    Attributes:
        file: stem of its ONNX files.
        timm_name: its architecture.
        size: side of the square that it takes, pixels.
        width: E, of its embedding.
        mean, std: how its pixels are normalised, of [0, 1].
    """

    file: str
    timm_name: str
    size: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


MOBILECLIP_S0 = Peer(
    file="mobileclip-s0", timm_name="fastvit_mci0", size=256, width=512, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
VIT_B32 = Peer(
    file="vit-b32",
    timm_name="vit_base_patch32_clip_224",
    size=224,
    width=512,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
VIT_L14 = Peer(
    file="vit-l14",
    timm_name="vit_large_patch14_clip_224",
    size=224,
    width=768,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(
        prog="python -m asymcir_benchmarks.device.write_peers", description="Write peers of random weights as ONNX."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; files in it are replaced")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures to calibrate int8 on")
    parser.add_argument("--vit-l14", action="store_true", help="also ViT-L/14's image tower, fp32, 1.2 GB")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files and print their paths."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    try:
        pictures = load_pictures(args.pictures)
        args.out.mkdir(parents=True, exist_ok=True)
        files = write_peer(MOBILECLIP_S0, args.out, pictures)
        if args.vit_l14:
            files += write_peer(VIT_L14, args.out)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    for path in files:
        print(f"{path.stat().st_size / 1e6:9.2f} MB  {path}")  # noqa: T201
    return 0


def write_peer(peer: Peer, folder: Path, pictures: Sequence[NDArray[np.uint8]] = ()) -> list[Path]:
    """Write `FILE.onnx`, and with pictures `FILE.int8.onnx`: normalised pixels [1, 3, S, S] -> embedding [1, E].

    Args:
        peer: what to write; branches that only training needs are merged, as one would for a phone.
        folder: to write to; files in it are replaced.
        pictures: [h, w, 3] uint8, any size, to calibrate int8 on.

    Raises:
        ExportError: it cannot be converted or quantised.
    """
    torch.manual_seed(_SEED)
    tower = reparameterize_model(timm.create_model(peer.timm_name, pretrained=False, num_classes=peer.width).eval())
    model = to_onnx(tower, {_TENSOR: torch.zeros(1, 3, peer.size, peer.size)}, outputs=["embedding"], axes={})
    _LOG.info("writing %s", peer.file)
    fp32, int8 = folder / f"{peer.file}.onnx", folder / f"{peer.file}.int8.onnx"
    write_onnx(model, fp32)
    if not pictures:
        return [fp32]
    spec = Preprocessing(size=peer.size, interpolation="bilinear", mean=peer.mean, std=peer.std)
    write_onnx(quantize_static_int8(model, _TENSOR, [_prepare(picture, spec) for picture in pictures]), int8)
    return [fp32, int8]


def _prepare(picture: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """Resize and normalise a picture: [1, 3, S, S]."""
    square = preprocess(picture, spec).astype(np.float32) / 255
    normalised = (square - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], dtype=np.float32)


if __name__ == "__main__":
    sys.exit(main())

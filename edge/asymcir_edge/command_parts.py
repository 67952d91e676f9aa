"""What several of the device's commands share: options, encoders, credentials, printable texts."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from asymcir_common import read_image
from asymcir_common.arguments import add_device_bundle, add_threads
from asymcir_protos import pack_tokens
from numpy.typing import NDArray

from asymcir_edge.errors import OutputError

if TYPE_CHECKING:
    from asymcir_edge.device.encoder import QueryEncoder
    from asymcir_edge.remote.credentials import Credentials


def add_encoder(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--device-bundle`, `--precision` and `--threads`."""
    add_device_bundle(parser, required=required)
    parser.add_argument("--precision", metavar="NAME", help="which of the bundle's encoders (default: the bundle's)")
    add_encoder_threads(parser)


def add_sentence_length(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add `--tokens N`; the help text begins with its meaning."""
    parser.add_argument(
        "--tokens",
        type=_read_sentence_length,
        metavar="N",
        help=f"{meaning}; an encoder trained with token dropout (distil.token_dropout) loses least (default: all)",
    )


def _read_sentence_length(text: str) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(
            f"expected a number of tokens, got {text}; a file of tokens is given as --tokens-file"
        ) from exc


def add_encoder_threads(parser: argparse.ArgumentParser) -> None:
    """Add `--threads N`, of an encoder."""
    add_threads(parser, least=1, default=1, help="threads that one picture is encoded with (default: 1)")


def open_encoder(args: argparse.Namespace) -> "QueryEncoder":
    """Open the encoder that the options of `add_encoder` name."""
    from asymcir_edge.device.bundle import DeviceBundle
    from asymcir_edge.device.encoder import QueryEncoder

    return QueryEncoder(DeviceBundle.load(args.device_bundle), precision=args.precision, threads=args.threads)


def encode_picture(
    encoder: "QueryEncoder", path: Path, length: int | None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Encode one picture file; return its first `length` tokens [L, D] and what is printed about them."""
    start_s = time.perf_counter()
    notes = list[str]()
    pixels = read_image(path, notes=notes)
    decoded_s = time.perf_counter()
    tokens = encoder.encode_image(pixels, tokens=length)
    encoded_s = time.perf_counter()
    norms = np.linalg.norm(tokens, axis=1)  # [L]
    report = {
        "path": str(path),
        "shape": list(tokens.shape),
        "norm_min": float(norms.min()),
        "norm_mean": float(norms.mean()),
        "norm_max": float(norms.max()),
        "fp16_size_bytes": pack_tokens(tokens, "fp16").ByteSize(),
        "int8_size_bytes": pack_tokens(tokens, "int8").ByteSize(),
        "decode_ms": (decoded_s - start_s) * 1000.0,
        "encode_ms": (encoded_s - decoded_s) * 1000.0,
        "notes": notes,
    }
    return tokens, report


def read_credentials(args: argparse.Namespace) -> "Credentials":
    """Read the options that `add_server` adds.

    Raises:
        CredentialsError: a file cannot be read, or one of two is missing.
    """
    from asymcir_edge.remote.credentials import Credentials, read_key

    certificate, private_key = args.tls_client or (None, None)
    return Credentials(
        key="" if args.key_file is None else read_key(args.key_file),
        tls=args.tls,
        ca=args.tls_ca,
        certificate=certificate,
        private_key=private_key,
    )


def check_output(path: Path, *, force: bool) -> None:
    """Refuse a file to write that is there already, or whose folder is not."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: expected the name of a file to write")
    if path.exists() and not force:
        raise OutputError(f"{path} exists: choose another name, or pass --force to replace it")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} to write {path.name} in: make it first")


def printable(text: str) -> str:
    """Replace what would move a terminal's cursor: ids and names come from a server."""
    return "".join(character if character.isprintable() else "?" for character in text)

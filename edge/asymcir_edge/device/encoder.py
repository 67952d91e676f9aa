"""A picture to its sentence tokens, on the device, with ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from asymcir_common import BundleError, ImageError, TokensError, read_image
from asymcir_common.arguments import MAX_THREADS
from asymcir_common.manifest import FileEntry
from asymcir_common.pictures import check_aspect
from numpy.typing import NDArray

from asymcir_edge.device.bundle import DeviceBundle
from asymcir_edge.errors import EncoderError

if TYPE_CHECKING:
    import onnxruntime

INPUT_NAME = "pixels"
OUTPUT_NAME = "sentence_tokens"
MAPS_NAME = "attention_maps"
"""A second output, which bundles of before do not have; nothing is computed for it alone."""

_LOG_FATAL = 4  # what ONNX Runtime would log as an error comes as an exception too


class QueryEncoder:
    """The light encoder and token learner of a device bundle.

    Thread-safe: calls may run at the same time. It can be pickled: the copy reads the bundle's folder again, and raises
    BundleError where that is gone or holds another bundle.
    """

    def __init__(self, bundle: DeviceBundle, *, precision: str | None = None, threads: int = 1) -> None:
        """Open an encoder of the bundle and check its graph against the manifest.

        Args:
            bundle: verified.
            precision: one of `bundle.encoders`; None for the bundle's default.
            threads: that one picture is encoded with, 1 to MAX_THREADS.

        Raises:
            BundleError: the bundle has no encoder of that precision.
            EncoderError: ONNX Runtime cannot open it, or its inputs and outputs are not what the manifest says.
        """
        if not 1 <= threads <= MAX_THREADS:
            raise EncoderError(f"expected 1 to {MAX_THREADS} threads, got {threads}")
        self.bundle = bundle
        self._threads = threads
        self.precision = bundle.default_encoder if precision is None else precision
        path = bundle.encoder_path(self.precision)
        computes_in_float = self.precision == "fp32" and bundle.weight_storage == "int8"
        self._session = open_session(path, threads=threads, float_compute=computes_in_float)
        _check_graph(self._session, path, bundle)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle which encoder of which folder this is."""
        return _reopen, (self.bundle.folder.resolve(), self.bundle.manifest.files, self.precision, self._threads)

    @property
    def provider(self) -> str:
        """The ONNX Runtime execution provider that computes, such as "CPUExecutionProvider"."""
        return str(self._session.get_providers()[0])

    @property
    def gives_maps(self) -> bool:
        """Whether `encode_with_maps` can tell what each token looks at."""
        return any(node.name == MAPS_NAME for node in self._session.get_outputs())

    def encode_file(self, path: str | Path, *, tokens: int | None = None) -> NDArray[np.float32]:
        """Encode a picture file; see `encode_image`.

        Raises:
            ImageError: the file is not a picture that can be used.
            TokensError: `tokens` is not from 1 to L.
            EncoderError: the encoder failed.
        """
        path = Path(path)
        return self.encode_image(read_image(path), tokens=tokens)

    def encode_image(self, pixels: NDArray[np.uint8], *, tokens: int | None = None) -> NDArray[np.float32]:
        """Encode one picture to its sentence tokens.

        Args:
            pixels: [h, w, 3], RGB, any size; resized and normalised inside the graph.
            tokens: N, to keep only the first N of the L tokens, from 1 to L; None for all. Fewer are fewer bytes to
                send. An encoder trained with token dropout (`distil.token_dropout`) loses least by it.

        Returns:
            [L, D] or [N, D], float32, in the word-embedding space that `bundle.word_space` names.

        Raises:
            ImageError: pixels is not [h, w, 3] uint8, or longer than MAX_ASPECT_RATIO times its width or height.
            TokensError: `tokens` is not from 1 to L.
            EncoderError: the encoder failed.

        Source: ISA, arXiv:2403.01431, section 3.
        """
        kept = check_sentence_length(tokens, self.bundle.sentence_length)
        return self._encode(pixels, [OUTPUT_NAME])[0][:kept]

    def encode_with_maps(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Encode one picture, and tell what each of its tokens looks at.

        Args:
            pixels: as `encode_image` takes them.

        Returns:
            Tokens [L, D], and attention maps [L, h, w], float32: the weights of the feature map's h * w locations in
            each token, which sum up to 1. They lie over the square that the preprocessing makes of the picture.

        Raises:
            BundleError: the encoder gives no maps: it was exported before encoders did.
            ImageError, EncoderError: see `encode_image`.
        """
        if not self.gives_maps:
            raise BundleError(
                f"{self.bundle.encoder_path(self.precision)} gives no {MAPS_NAME}: export the bundle again with "
                "`asymcir export device`"
            )
        tokens, maps = self._encode(pixels, [OUTPUT_NAME, MAPS_NAME])
        return tokens, maps

    def _encode(self, pixels: NDArray[np.uint8], names: list[str]) -> list[NDArray[np.float32]]:
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise ImageError(f"expected pixels [h, w, 3] uint8, got {list(pixels.shape)} {pixels.dtype}")
        height, width = pixels.shape[:2]
        check_aspect(width, height)
        try:
            found: list[NDArray[np.float32]] = self._session.run(names, {INPUT_NAME: np.ascontiguousarray(pixels)})
        except Exception as exc:  # ONNX Runtime's errors have no common base
            raise EncoderError(f"the encoder failed on a picture of {width}x{height}: {_first_line(exc)}") from exc
        expected = (self.bundle.sentence_length, self.bundle.word_width)
        if found[0].shape != expected or not np.isfinite(found[0]).all():
            raise EncoderError(
                f"expected finite sentence tokens {list(expected)}, got {list(found[0].shape)}: export again"
            )
        return found


def _reopen(folder: Path, files: Mapping[str, FileEntry], precision: str, threads: int) -> QueryEncoder:
    bundle = DeviceBundle.load(folder)
    if bundle.manifest.files != files:
        raise BundleError(f"{folder} holds another bundle than when the encoder was pickled: open the encoder anew")
    return QueryEncoder(bundle, precision=precision, threads=threads)


def check_sentence_length(tokens: int | None, length: int) -> int:
    """Return how many of a sentence's tokens are kept, all of them where None is asked for.

    Raises:
        TokensError: not from 1 to L.
    """
    if tokens is not None and not 1 <= tokens <= length:
        raise TokensError(f"expected 1 to {length} tokens, for the sentence has {length}, got {tokens}")
    return length if tokens is None else tokens


def open_session(path: Path, *, threads: int, float_compute: bool) -> "onnxruntime.InferenceSession":
    """Open an encoder as the device does.

    Args:
        path: ONNX, or ONNX Runtime's own format.
        threads: that one picture is encoded with.
        float_compute: fold weights that are stored as int8 to float32, once, at load.

    Raises:
        EncoderError: ONNX Runtime cannot open it.
    """
    import onnxruntime  # here, so that the command's help does not wait for it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _LOG_FATAL
    if float_compute:
        # Weights stored as int8 are then made float once, at load, instead of at every run or in quantised kernels.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's errors have no common base
        raise EncoderError(f"ONNX Runtime {onnxruntime.__version__} cannot open {path}: {_first_line(exc)}") from exc


def _check_graph(session: "onnxruntime.InferenceSession", path: Path, bundle: DeviceBundle) -> None:
    inputs = [(node.name, node.type, _fixed(node.shape)) for node in session.get_inputs()]
    outputs = [(node.name, node.type, _fixed(node.shape)) for node in session.get_outputs()]
    expected_inputs = [(INPUT_NAME, "tensor(uint8)", [None, None, 3])]
    if inputs != expected_inputs:
        raise EncoderError(f"{path}: expected the graph inputs {expected_inputs}, got {inputs}: export again")
    expected_outputs = [(OUTPUT_NAME, "tensor(float)", [bundle.sentence_length, bundle.word_width])]
    if len(outputs) > 1:
        sides = outputs[1][2][1:]  # of the feature map, which the manifest does not tell
        wanted = [bundle.sentence_length, *(sides if len(sides) == 2 and all(sides) else ["h", "w"])]
        expected_outputs.append((MAPS_NAME, "tensor(float)", wanted))
    if outputs != expected_outputs:
        raise EncoderError(f"{path}: expected the graph outputs {expected_outputs}, got {outputs}: export again")


def _fixed(shape: list[int | str | None]) -> list[int | None]:
    """Return a graph's shape with None for each size that is only known at run time."""
    return [size if isinstance(size, int) else None for size in shape]


def _first_line(exc: Exception) -> str:
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__

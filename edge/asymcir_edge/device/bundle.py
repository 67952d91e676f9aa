"""The device bundle: a verified folder and what its manifest says, typed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from asymcir_common import BundleError, ImageError, Manifest, Preprocessing, read_manifest
from asymcir_common.manifest import DEVICE_BUNDLE

WeightStorage = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBundle:
    """A device bundle whose every file matches its manifest.

    Attributes:
        folder: where it lies.
        manifest: as read and verified.
        word_space: digest of the word-embedding space of the sentence tokens.
        sentence_length: L, tokens per picture.
        word_width: D, width of a token.
        preprocessing: what the encoder's graph does to a picture before the network.
        encoders: precision -> ONNX file.
        default_encoder: the precision to use where none is asked for.
        weight_storage: how the encoders keep weights that they compute with in float; "int8" and "fp16" are smaller
            files of the same computation.
    """

    folder: Path
    manifest: Manifest
    word_space: str
    sentence_length: int
    word_width: int
    preprocessing: Preprocessing
    encoders: Mapping[str, Path]
    default_encoder: str
    weight_storage: WeightStorage

    @classmethod
    def load(cls, folder: str | Path) -> "DeviceBundle":
        """Verify a device bundle and read its properties.

        Args:
            folder: holds `manifest.json` and the files that it lists.

        Raises:
            BundleError: the folder does not match its manifest, or the manifest lacks a property or has a wrong one.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, format=DEVICE_BUNDLE)
        try:
            preprocessing = Preprocessing.from_json(_require(manifest, folder, "preprocessing", dict))
        except ImageError as exc:
            raise BundleError(f"{folder}: {exc}") from exc
        encoders = _read_encoders(manifest, folder)
        default_encoder = _require(manifest, folder, "default_encoder", str)
        if default_encoder not in encoders:
            raise _wrong(folder, "default_encoder", f"one of {sorted(encoders)}", default_encoder)
        weight_storage = manifest.properties.get("weight_storage", "fp32")
        if weight_storage not in get_args(WeightStorage):
            raise _wrong(folder, "weight_storage", f"one of {list(get_args(WeightStorage))}", weight_storage)
        return cls(
            folder=folder,
            manifest=manifest,
            word_space=_require(manifest, folder, "word_space", str),
            sentence_length=_require(manifest, folder, "sentence_length", int),
            word_width=_require(manifest, folder, "word_width", int),
            preprocessing=preprocessing,
            encoders=encoders,
            default_encoder=default_encoder,
            weight_storage=cast(WeightStorage, weight_storage),
        )

    def encoder_path(self, precision: str | None = None) -> Path:
        """Return the ONNX file of a precision, or of the default one.

        Raises:
            BundleError: the bundle has no encoder of that precision.
        """
        precision = self.default_encoder if precision is None else precision
        if precision not in self.encoders:
            raise BundleError(
                f"{self.folder} has no encoder of precision {precision!r}: it has {sorted(self.encoders)}"
            )
        return self.encoders[precision]


def _read_encoders(manifest: Manifest, folder: Path) -> dict[str, Path]:
    encoders: dict[str, Path] = {}
    for precision, name in _require(manifest, folder, "encoders", dict).items():
        if (
            not isinstance(name, str) or name not in manifest.files
        ):  # a file that the manifest does not list was not verified
            raise _wrong(folder, "encoders", "files that the manifest lists", name)
        encoders[precision] = folder / name
    return encoders


def _require(manifest: Manifest, folder: Path, key: str, kind: type) -> Any:
    """Return a property of the given type that is not empty or below one."""
    value = manifest.require(key)
    if not isinstance(value, kind) or isinstance(value, bool) or not value or (isinstance(value, int) and value < 1):
        expected = {dict: "a mapping that is not empty", str: "a text that is not empty", int: "a whole number above 0"}
        raise _wrong(folder, key, expected[kind], value)
    return value


def _wrong(folder: Path, key: str, expected: str, value: object) -> BundleError:
    return BundleError(
        f"the manifest of {folder} is wrong: expected {key} to be {expected}, got {value!r}; export again"
    )

"""The server bundle: a verified manifest, and its parts opened when they are first used."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from asymcir_common import BundleError, ImageError, Manifest, Preprocessing, read_manifest
from asymcir_common.arguments import MAX_THREADS
from asymcir_common.manifest import SERVER_BUNDLE
from numpy.typing import NDArray

from asymcir_server.encode.sessions import check_signature, open_session

TARGETS = ("union", "original", "sum")
"""Target types, in the order in which help texts name them; `union` only of a bundle with a UNION head."""

CLEANINGS = ("whitespace", "lower", "canonicalize")
TOKENS_FIELD = "{tokens}"
MODIFIER_FIELD = "{modifier}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """How the text encoder is fed.

    Attributes:
        file, word_embeddings, word_embedding_scales: files of the bundle; scales only for an int8 table.
        context_length: longest row, start and end included.
        word_width, embedding_width: D and E.
        causal: whether a position sees only what stands before it, so that a batch may be cut behind its longest end.
        start_ids, end_ids: set around every prompt.
        pad_id: fills rows that are shorter than the batch.
    """

    file: str
    word_embeddings: str
    word_embedding_scales: str | None
    context_length: int
    word_width: int
    embedding_width: int
    causal: bool
    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    pad_id: int

    def __post_init__(self) -> None:
        if min(self.context_length, self.word_width, self.embedding_width) < 1:
            raise ValueError("context_length, word_width and embedding_width must be above 0")
        if len(self.start_ids) + len(self.end_ids) >= self.context_length:
            raise ValueError(f"start_ids and end_ids fill the context of {self.context_length} tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Templates: `tokens` without a modifier, `tokens_modifier` with one, `null` for the gallery's empty text."""

    tokens: str
    tokens_modifier: str
    null: str

    def __post_init__(self) -> None:
        if self.tokens.count(TOKENS_FIELD) != 1 or MODIFIER_FIELD in self.tokens:
            raise ValueError(f"the prompt {self.tokens!r} must name {TOKENS_FIELD} once and no {MODIFIER_FIELD}")
        if self.tokens_modifier.count(TOKENS_FIELD) != 1 or self.tokens_modifier.count(MODIFIER_FIELD) != 1:
            raise ValueError(f"the prompt {self.tokens_modifier!r} must name {TOKENS_FIELD} and {MODIFIER_FIELD} once")


class ServerBundle:
    """A server bundle whose every file matches its manifest.

    Sessions and tables open on first use and stay open, so that a command that only builds galleries does not pay for
    what it does not need. Safe to share between threads.

    Attributes:
        folder: where it lies.
        manifest: as verified.
        word_space: digest of the space that sentence tokens live in.
        target_spaces: target type -> digest of the space of its gallery vectors.
        union_file: the UNION head's file; None where the bundle has no head.
        text, prompts, preprocessing: what the encoders need to know.
        clean: text cleaning in front of the tokenizer, one of CLEANINGS.
        threads: threads inside one ONNX operator, at most MAX_THREADS; 0: ONNX Runtime decides.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int = 0) -> None:
        """Read the manifest's properties; use `load`, which verifies the files first."""
        self.folder = folder
        self.manifest = manifest
        self.threads = threads
        try:
            self.word_space = _text(manifest.require("word_space"))
            self.target_spaces = {key: _text(value) for key, value in dict(manifest.require("target_spaces")).items()}
            self.text = _read_text_config(manifest.require("text"))
            prompts = manifest.require("prompts")
            self.prompts = Prompts(
                tokens=_text(prompts["tokens"]),
                tokens_modifier=_text(prompts["tokens_modifier"]),
                null=_text(prompts["null"]),
            )
            tokenizer = manifest.require("tokenizer")
            self.tokenizer_file = _text(tokenizer["file"])
            self.clean = _text(tokenizer["clean"])
            visual = manifest.require("visual")
            self.visual_file = _text(visual["file"])
            self._convolutional = bool(visual.get("convolutional", False))
            self.preprocessing = Preprocessing.from_json(visual["preprocessing"])
            union = manifest.properties.get("union")
            self.union_file = None if union is None else _text(union["file"])
            compute = dict(manifest.properties.get("compute", {}))  # bundles of old say nothing: all is float32
            self._compute = {_text(file): _text(value) for file, value in compute.items()}
        except (AttributeError, KeyError, TypeError, ValueError, ImageError) as exc:
            raise BundleError(
                f"the manifest of {folder} cannot be used ({type(exc).__name__}: {exc}): export it again"
            ) from exc
        if self.clean not in CLEANINGS:
            raise BundleError(f"expected a text cleaning of {', '.join(CLEANINGS)} in {folder}, got {self.clean!r}")
        if ("union" in self.target_spaces) != (self.union_file is not None):
            raise BundleError(
                f"expected a UNION head and a target space `union` in {folder}, or neither: export it again"
            )
        files = [self.text.file, self.text.word_embeddings, self.tokenizer_file, self.visual_file]
        for name in (*files, self.text.word_embedding_scales, self.union_file):
            if name is not None and name not in manifest.files:
                raise BundleError(f"{folder} uses {name}, which its manifest does not list: export it again")
        self._lock = threading.RLock()
        self._text_session: tuple[ort.InferenceSession, frozenset[str]] | None = None
        self._visual_session: ort.InferenceSession | None = None
        self._union_session: ort.InferenceSession | None = None
        self._word_table: WordTable | None = None

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 0) -> "ServerBundle":
        """Verify a folder and open it.

        Args:
            folder: the bundle.
            threads: threads inside one ONNX operator, at most MAX_THREADS; 0: ONNX Runtime decides.

        Raises:
            BundleError: missing, damaged, of another format, or with a manifest that does not fit.
        """
        folder = Path(folder)
        if not 0 <= threads <= MAX_THREADS:
            raise BundleError(f"expected 0 to {MAX_THREADS} threads, got {threads}")
        return cls(folder, read_manifest(folder, format=SERVER_BUNDLE), threads=threads)

    @property
    def default_target(self) -> str:
        """The target type of a gallery that names none: `union` where the bundle has a UNION head, else `original`."""
        return "original" if self.union_file is None else "union"

    def target_space(self, target: str) -> str:
        """Return the digest of one target type's space.

        Raises:
            BundleError: the bundle cannot make that target type.
        """
        if target == "union" and self.union_file is None:
            raise BundleError(
                f"{self.folder} has no UNION head, so it makes the targets {', '.join(self.target_spaces)}: choose one "
                "of these, or export the bundle again with `--union CHECKPOINT`"
            )
        if target not in self.target_spaces:
            raise BundleError(f"{self.folder} makes the targets {sorted(self.target_spaces)}, not {target!r}")
        return self.target_spaces[target]

    def text_session(self) -> tuple[ort.InferenceSession, frozenset[str]]:
        """Open the text encoder; returns it and the names of the inputs that it declares."""
        with self._lock:
            if self._text_session is None:
                session = self._open(self.text.file)
                names = check_signature(
                    session,
                    self.folder / self.text.file,
                    inputs={
                        "word_embeddings": ("float32", ("batch", "length", self.text.word_width)),
                        "attention_mask": ("int64", ("batch", "length")),
                        "pool_index": ("int64", ("batch",)),
                    },
                    outputs={"text_features": ("float32", ("batch", self.text.embedding_width))},
                    optional_inputs=frozenset({"attention_mask", "pool_index"}),
                )
                self._text_session = session, names
            return self._text_session

    def visual_session(self) -> ort.InferenceSession:
        """Open the visual encoder."""
        with self._lock:
            if self._visual_session is None:
                path = self.folder / self.visual_file
                size = self.preprocessing.size
                session = self._open(self.visual_file)
                check_signature(
                    session,
                    path,
                    inputs={"pixels": ("uint8", ("batch", size, size, 3))},
                    outputs={"image_features": ("float32", ("batch", self.text.embedding_width))},
                )
                self._visual_session = session
            return self._visual_session

    def union_session(self) -> ort.InferenceSession:
        """Open the UNION head.

        Raises:
            BundleError: the bundle has none, or it does not fit the manifest.
        """
        if self.union_file is None:
            raise BundleError(f"{self.folder} has no UNION head: export it again with `--union CHECKPOINT`")
        with self._lock:
            if self._union_session is None:
                path = self.folder / self.union_file
                shape = ("batch", self.text.embedding_width)
                session = self._open(self.union_file)
                check_signature(
                    session,
                    path,
                    inputs={"image_features": ("float32", shape), "text_features": ("float32", shape)},
                    outputs={"target": ("float32", shape)},
                )
                self._union_session = session
            return self._union_session

    def word_table(self) -> "WordTable":
        """Open the word-embedding table."""
        with self._lock:
            if self._word_table is None:
                scales = self.text.word_embedding_scales
                self._word_table = WordTable(
                    self.folder / self.text.word_embeddings,
                    self.text.word_width,
                    scales_path=None if scales is None else self.folder / scales,
                )
            return self._word_table

    def _open(self, file: str) -> ort.InferenceSession:
        return open_session(
            self.folder / file,
            threads=self.threads,
            compute=self._compute.get(file, "fp32"),
            convolutional=file == self.visual_file and self._convolutional,
        )


class WordTable:
    """The word-embedding table [V, D], mapped from its file; only the rows asked for become float32.

    Raises:
        BundleError: the file is not an array of that width and a dtype that the contract names.
    """

    def __init__(self, path: Path, width: int, *, scales_path: Path | None = None) -> None:
        """Map the table, and read the scales of an int8 one."""
        try:
            self._rows: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            self._scales = None if scales_path is None else np.load(scales_path, allow_pickle=False).astype(np.float32)
        except (OSError, ValueError) as exc:
            raise BundleError(f"cannot read the word embeddings {path}: {exc}; export the bundle again") from exc
        dtype = self._rows.dtype.name
        if self._rows.ndim != 2 or self._rows.shape[1] != width or dtype not in {"float32", "float16", "int8"}:
            raise BundleError(
                f"expected word embeddings [V, {width}] of float32, float16 or int8 in {path}, "
                f"got {list(self._rows.shape)} {dtype}: export the bundle again"
            )
        expected = (self._rows.shape[0],) if dtype == "int8" else None
        if (None if self._scales is None else self._scales.shape) != expected:
            raise BundleError(f"{path} is {dtype}: an int8 table needs one scale per word, the others none")

    def __len__(self) -> int:
        """Return V."""
        return int(self._rows.shape[0])

    def lookup(self, ids: list[int] | tuple[int, ...]) -> NDArray[np.float32]:
        """Return the embeddings of words.

        Returns:
            [T, D], float32.

        Raises:
            BundleError: an id lies outside the table, so that tokenizer and table do not belong together.
        """
        if ids and (min(ids) < 0 or max(ids) >= len(self)):
            raise BundleError(
                f"word ids run from {min(ids)} to {max(ids)}, the word-embedding table holds {len(self)}: "
                "the bundle's tokenizer and table do not fit, export it again"
            )
        index = np.asarray(ids, dtype=np.int64)
        rows = np.asarray(self._rows[index], dtype=np.float32)  # [T, D]
        return rows if self._scales is None else rows * self._scales[index][:, None]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value


def _read_text_config(record: Mapping[str, Any]) -> TextConfig:
    scales, causal = record.get("word_embedding_scales"), record["causal"]
    if not isinstance(causal, bool):
        raise TypeError(f"expected causal as true or false, got {causal!r}")
    return TextConfig(
        file=_text(record["file"]),
        word_embeddings=_text(record["word_embeddings"]),
        word_embedding_scales=None if scales is None else _text(scales),
        context_length=int(record["context_length"]),
        word_width=int(record["word_width"]),
        embedding_width=int(record["embedding_width"]),
        causal=causal,
        start_ids=tuple(int(value) for value in record["start_ids"]),
        end_ids=tuple(int(value) for value in record["end_ids"]),
        pad_id=int(record["pad_id"]),
    )

"""What a leaner encoder costs its users: composed queries through the real text encoder, before and after.

A cosine of 0.99 may change every answer or none. So the search itself is run twice, with the tokens of the PyTorch
original and with those of the exported encoder, over the same gallery, and the answers are compared.

Notation: q queries, p query pictures, m gallery pictures, L sentence tokens, D word-embedding width, E joint-embedding
width.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import ImageError, preprocess, read_image
from asymcir_common.places import PathReader, find_pictures
from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.targets import TargetEncoder
from asymcir_server.encode.text_encoder import TextEncoder
from asymcir_server.encode.visual import VisualEncoder
from numpy.typing import NDArray

from asymcir_export.errors import ExportError

MAX_RECALL_LOSS = 0.005
"""Of R@10 of composed queries, a share of all queries."""


TOP_K = 10
INTERVAL_RESAMPLES = 1000
_BATCH = 64
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a search gave.

    Attributes:
        top: [q, TOP_K], rows of the gallery, best first, the reference left out.
        hits: [q], whether the target is among them.
    """

    top: NDArray[np.int64]
    hits: NDArray[np.bool_]


class SearchSet:
    """Composed queries with their answers, and the gallery they search.

    The folder is laid out as EmojiCIR is: `triplets.jsonl` (reference, modifier, target), REFERENCE.* in `queries.zip`
    or `queries/`, and `gallery/gallery.jsonl` (path, id).
    """

    def __init__(self, folder: Path, server_bundle: Path) -> None:
        """Read the queries and compute the gallery with the server bundle.

        Raises:
            ExportError: the folder holds no search set, or not all of its pictures.
            BundleError: the server bundle does not load.
        """
        bundle = ServerBundle.load(server_bundle)
        self.word_space = bundle.word_space
        self._text_encoder = TextEncoder(bundle)
        gallery = _read_rows(folder / "gallery" / "gallery.jsonl", ("path", "id"))
        self._rows = {row["id"]: number for number, row in enumerate(gallery)}
        triplets = _read_rows(folder / "triplets.jsonl", ("reference", "modifier", "target"))
        queries = folder / "queries.zip"
        shown = {path.stem: path for path in find_pictures(queries if queries.is_file() else folder / "queries")}
        lacking = [row for row in triplets if row["reference"] not in shown or row["target"] not in self._rows]
        if lacking:
            raise ExportError(
                f"{folder} lacks the picture of {lacking[0]['reference']!r} or of {lacking[0]['target']!r}, and "
                f"{len(lacking) - 1} pairs more: expected REFERENCE.* in queries.zip or queries/, and an id "
                "of gallery/gallery.jsonl"
            )
        references = sorted({row["reference"] for row in triplets})
        places = {slug: number for number, slug in enumerate(references)}
        reader = PathReader()
        self.pictures = [read_image(shown[slug], reader) for slug in references]
        self._asked = [places[row["reference"]] for row in triplets]
        self._modifiers = [row["modifier"] for row in triplets]
        self._targets = np.array([self._rows[row["target"]] for row in triplets])
        self._references = [self._rows.get(row["reference"], -1) for row in triplets]
        self._gallery = _embed_gallery([folder / "gallery" / row["path"] for row in gallery], bundle)  # [m, E]

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self._modifiers)

    def restrict(self, answers: Answers, places: Collection[int]) -> Answers:
        """Keep of the answers to all queries those to the queries of some pictures."""
        asked = self._asked_of(places)
        return Answers(top=answers.top[asked], hits=answers.hits[asked])

    def _asked_of(self, places: Collection[int]) -> list[int]:
        """Return the numbers of the queries whose picture stands at one of these places."""
        return [number for number, place in enumerate(self._asked) if place in places]

    def search(self, tokens: NDArray[np.float32], places: Sequence[int] | None = None) -> Answers:
        """Answer the queries.

        Args:
            tokens: [p, L, D], of `pictures` at `places`.
            places: where fewer than all pictures were encoded, which; only their queries are answered.
        """
        row_of = {place: row for row, place in enumerate(range(len(self.pictures)) if places is None else places)}
        asked = self._asked_of(row_of)
        queries = self._text_encoder.encode_queries(
            [tokens[row_of[self._asked[number]]] for number in asked], [self._modifiers[number] for number in asked]
        )
        similarity = queries @ self._gallery.T  # [q, m]
        for row, number in zip(similarity, asked, strict=True):
            if self._references[number] >= 0:
                row[self._references[number]] = -np.inf
        top = np.argsort(-similarity, axis=1, kind="stable")[:, :TOP_K]
        return Answers(top=top, hits=(top == self._targets[asked][:, None]).any(axis=1))


def compare_answers(original: Answers, found: Answers) -> dict[str, Any]:
    """Say what changed.

    Returns:
        `queries`; `recall_at_10` and `recall_at_10_original`; `recall_at_10_change` with its 95% bootstrap interval
        over queries; `top_10_agreement`, the mean share of the original's top ten that is still there, and
        `top_1_agreement`.
    """
    change = found.hits.astype(np.float64) - original.hits
    generator = np.random.default_rng(_SEED)
    drawn = generator.integers(0, len(change), (INTERVAL_RESAMPLES, len(change)))
    low, high = np.quantile(change[drawn].mean(axis=1), (0.025, 0.975))
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(original.top.tolist(), found.top.tolist(), strict=True)]
    return {
        "queries": len(change),
        "recall_at_10_original": float(original.hits.mean()),
        "recall_at_10": float(found.hits.mean()),
        "recall_at_10_change": float(change.mean()),
        "recall_at_10_change_interval": [float(low), float(high)],
        "top_10_agreement": float(np.mean(shared)),
        "top_1_agreement": float((original.top[:, 0] == found.top[:, 0]).mean()),
    }


def _embed_gallery(paths: list[Path], bundle: ServerBundle) -> NDArray[np.float32]:
    visual, targets = VisualEncoder(bundle), TargetEncoder(bundle)
    reader = PathReader()
    found = []
    for start in range(0, len(paths), _BATCH):
        try:
            pictures = [read_image(path, reader) for path in paths[start : start + _BATCH]]
        except ImageError as exc:
            raise ExportError(f"a gallery picture of the search set cannot be read: {exc}") from exc
        squares = np.stack([preprocess(picture, visual.preprocessing) for picture in pictures])
        found.append(targets.compute_targets(visual.encode_image(squares)))
    return np.concatenate(found)


def _read_rows(path: Path, keys: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [{key: str(row[key]) for key in keys} for row in rows]
    except OSError as exc:
        raise ExportError(f"cannot read the search set: {exc}; expected a folder as demo/assets is") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise ExportError(f"{path}: expected JSON lines with {', '.join(keys)}, got {exc}") from exc
    if not found:
        raise ExportError(f"{path} is empty")
    return found

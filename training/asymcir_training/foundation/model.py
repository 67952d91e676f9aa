"""The frozen vision-language foundation behind one small interface, over open_clip or over BLIP.

Works for every open_clip pretrained tag, a local checkpoint of a known architecture, a folder with open_clip's own
config and weights ("local-dir:FOLDER"), and BLIP's image-text retrieval model ("blip:FOLDER", see blip.py). Nothing
else in asymcir knows open_clip.

Notation: b batch, T tokens, L sentence tokens, D word-embedding width, E joint-embedding width, S picture side,
P patches, C width of BLIP's visual tower.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from asymcir_common import Preprocessing
from torch import Tensor, nn
from torch.nn import functional

from asymcir_training.errors import FoundationError
from asymcir_training.foundation.blip import SCHEME as BLIP_SCHEME
from asymcir_training.foundation.blip import BlipModel, BlipVisual, load_blip
from asymcir_training.foundation.digests import ModuleDigest, digest
from asymcir_training.foundation.preprocessing import normalise_pixels
from asymcir_training.foundation.prompts import NULL_PROMPT, PROMPTS, TOKENS_MODIFIER_PROMPT, TOKENS_PROMPT
from asymcir_training.foundation.text_towers import activation_name, build_text_tower
from asymcir_training.foundation.tokenizer import WordTokenizer

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
TEXT_FOLDER = "text"
"""Of a folder that is loaded as local-dir:FOLDER; the last holds a Hugging Face text tower, where it has one."""
_SPACE_VERSION = 2
_DETAIL_LENGTH = 300


class Foundation(nn.Module):
    """A frozen open_clip or BLIP model in eval mode.

    Attributes:
        name: how it was asked for, for manifests.
        word_width: D.
        embedding_width: E.
        context_length: most tokens in a row, start and end included.
        vocabulary_size: rows of the word-embedding table.
        causal: whether the text tower is causal, so that a batch may be cut at its longest end-of-text.
        pads_to_context: whether it attends to padding, so that rows must be padded to the whole context.
        preprocessing: how pictures come in.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.words = WordTokenizer(tokenizer)
        self.text = build_text_tower(model).eval().requires_grad_(False)
        self.preprocessing = _read_preprocessing(model)
        table = self.word_embedding_table()
        self.vocabulary_size, self.word_width = int(table.shape[0]), int(table.shape[1])
        self.embedding_width = int(self.text.embedding_width)
        self.causal = bool(self.text.causal)
        self.pads_to_context = bool(self.text.pads_to_context)
        context = getattr(tokenizer, "context_length", None) or getattr(model, "context_length", None)
        self.context_length = int(context or model.text.context_length)
        self._word_space = ModuleDigest()
        self._visual_digest = ModuleDigest()

    @property
    def start_ids(self) -> list[int]:
        """Token ids before the words."""
        return self.words.start_ids

    @property
    def end_ids(self) -> list[int]:
        """Token ids after the words; the last one is where a causal tower pools."""
        return self.words.end_ids

    @property
    def pad_id(self) -> int:
        """Token id that fills rows."""
        return self.words.pad_id

    @property
    def text_clean(self) -> str:
        """The cleaning before tokenisation: "whitespace", "lower" or "canonicalize"."""
        return self.words.clean

    @property
    def open_clip_tokenizer(self) -> Any:
        """The tokenizer as open_clip wraps it."""
        return self.words.open_clip_tokenizer

    def train(self, mode: bool = True) -> "Foundation":
        """Stay in eval mode: a foundation is frozen, its dropout and batch statistics too."""
        del mode
        return super().train(False)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text's words, cleaned, without special tokens."""
        return self.words.tokenize(text)

    def word_embedding_table(self) -> Tensor:
        """Return the word-embedding table [V, D]."""
        weight: Tensor = self.text.word_embedding.weight
        return weight

    def encode_words(self, word_embeddings: Tensor, attention_mask: Tensor, pool_index: Tensor) -> Tensor:
        """Run the text tower from word embeddings.

        Args:
            word_embeddings: [b, T, D].
            attention_mask: [b, T], int64, 1 for words and 0 for padding.
            pool_index: [b], int64, position of the last end token.

        Returns:
            text_features [b, E], not normalised.
        """
        return self.text(word_embeddings, attention_mask, pool_index)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Run the visual tower: [b, 3, S, S] normalised pixels -> image_features [b, E], not normalised."""
        features = self.model.visual(pixels)
        return features[0] if isinstance(features, tuple) else features

    def normalise_pixels(self, pixels: Tensor) -> Tensor:
        """Turn [b, S, S, 3] uint8 into [b, 3, S, S] float, normalised."""
        return normalise_pixels(pixels, self.preprocessing)

    def encode_patches(self, pixels: Tensor) -> Tensor:
        """Return patch embeddings projected into the joint space: [b, 3, S, S] -> [b, P, E], not normalised.

        Raises:
            FoundationError: a visual tower without a projection that applies to single patches.
        """
        visual = self.model.visual
        if isinstance(visual, BlipVisual):
            return visual.encode_patches(pixels)
        if hasattr(visual, "trunk"):
            trunk, linear = visual.trunk, getattr(visual.head, "proj", None)
            features = trunk.forward_features(pixels)
            if features.ndim != 4 or features.shape[1] != trunk.num_features or not isinstance(linear, nn.Linear):
                raise FoundationError(
                    "patch embeddings of a timm tower need a feature map [b, c, h, w], average pooling and a linear "
                    f"projection, where pooling and projecting commute; this {type(trunk).__name__} has others"
                )
            return linear(features.flatten(2).transpose(1, 2))  # [b, P, E]
        if getattr(visual, "attn_pool", None) is not None or not hasattr(visual, "ln_post"):
            raise FoundationError(
                f"the visual tower {type(visual).__name__} has no per-patch projection into the joint space"
            )
        found = visual.forward_intermediates(pixels, indices=1, normalize_intermediates=True, output_fmt="NLC")
        patches = found["image_intermediates"][-1]
        return patches @ visual.proj if visual.proj is not None else patches

    def encode_image_states(self, pixels: Tensor) -> Tensor:
        """Return what the matching encoder looks at: [b, 3, S, S] -> hidden states [b, P + 1, C], not projected.

        Raises:
            FoundationError: a foundation without a matching encoder, which is any but BLIP.
        """
        return self._matching_model().visual.encode_states(pixels)

    def check_matching(self) -> None:
        """Refuse a foundation without a matching encoder, before it is asked.

        Raises:
            FoundationError: it is none.
        """
        self._matching_model()

    def match(self, word_embeddings: Tensor, attention_mask: Tensor, image_states: Tensor) -> Tensor:
        """Ask the matching encoder and its head whether words and picture belong together.

        Args:
            word_embeddings: [b, T, D], as `embed_query` gives them.
            attention_mask: [b, T], int64, 1 for words and 0 for padding.
            image_states: [b, P + 1, C], from `encode_image_states`.

        Returns:
            Logits [b, 2], "no match" and "match".

        Raises:
            FoundationError: a foundation without a matching encoder, which is any but BLIP.
        """
        return self._matching_model().match(word_embeddings, attention_mask, image_states)

    def _matching_model(self) -> BlipModel:
        if not isinstance(self.model, BlipModel):
            raise FoundationError(
                f"{self.name} has no matching encoder: take a BLIP foundation (blip:FOLDER), or LAR in its form for "
                "CLIP-like models"
            )
        return self.model

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Encode plain texts: text_features [b, E], not normalised. Longer texts are cut to the context."""
        return self.encode_words(*self._embed_rows([self.tokenize(text) for text in texts]))

    def encode_null(self) -> Tensor:
        """Encode UNION's null text: [1, E], not normalised."""
        return self.encode_text([NULL_PROMPT])

    def compose_query(self, sentence_tokens: Tensor, modifiers: Sequence[str] | None = None) -> Tensor:
        """Encode "a photo of <tokens> that <modifier>".

        Args:
            sentence_tokens: [b, L, D].
            modifiers: b texts; an empty one, or None for all, leaves " that <modifier>" away.

        Returns:
            text_features [b, E], not normalised; gradients flow to sentence_tokens.

        Source: ISA, arXiv:2403.01431, section 3.
        """
        return self.compose_with_tokens(sentence_tokens, modifiers)[0]

    def compose_with_tokens(
        self, sentence_tokens: Tensor, modifiers: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Do as `compose_query`, and return beside it what the text tower made of each sentence token: [b, L, E].

        The latter are the tower's outputs at the tokens' places, projected into the joint space, not normalised.
        """
        embeddings, mask, pool_index, places = self.embed_query(sentence_tokens, modifiers)
        features, outputs = self.text.encode_with_places(embeddings, mask, pool_index)
        return features, outputs[:, places]

    def embed_query(
        self, sentence_tokens: Tensor, modifiers: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, slice]:
        """Compose "a photo of <tokens> that <modifier>" as rows of word embeddings, not yet encoded.

        Args:
            sentence_tokens: [b, L, D].
            modifiers: as for `compose_query`.

        Returns:
            Word embeddings [b, T, D] with start and end, attention mask [b, T], pool index [b], and the places of the
            sentence tokens.
        """
        prefix = self.tokenize(TOKENS_PROMPT.split("{tokens}")[0])
        after = TOKENS_MODIFIER_PROMPT.split("{tokens}")[1]
        length = sentence_tokens.shape[1]
        holes = [self.pad_id] * length
        texts = modifiers if modifiers is not None else [""] * sentence_tokens.shape[0]
        if len(texts) != sentence_tokens.shape[0]:
            raise FoundationError(f"expected {sentence_tokens.shape[0]} modifiers, one per query, got {len(texts)}")
        rows = [prefix + holes + (self.tokenize(after.format(modifier=text)) if text.strip() else []) for text in texts]
        start = len(self.start_ids) + len(prefix)
        embeddings, mask, pool_index = self._embed_rows(rows)
        embeddings = torch.cat([embeddings[:, :start], sentence_tokens, embeddings[:, start + length :]], dim=1)
        return embeddings, mask, pool_index, slice(start, start + length)

    def _embed_rows(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Add start and end, pad, look up: embeddings [b, T, D], attention mask [b, T], pool index [b]."""
        room = self.context_length - len(self.start_ids) - len(self.end_ids)
        full = [[*self.start_ids, *row[:room], *self.end_ids] for row in rows]
        length = self.context_length if self.pads_to_context else max(len(row) for row in full)
        table = self.word_embedding_table()
        ids = torch.tensor([row + [self.pad_id] * (length - len(row)) for row in full], device=table.device)  # [b, T]
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in full], device=table.device)
        pool_index = torch.tensor([len(row) - 1 for row in full], device=table.device)
        return functional.embedding(ids, table), mask, pool_index

    def word_space(self) -> str:
        """Return the digest that names this word-embedding space and the text tower that reads it."""
        return self._word_space.of(self.text, self._text_facts)

    def visual_digest(self) -> str:
        """Return the digest that names the visual tower: its weights, how it computes, and how pictures come in."""
        return self._visual_digest.of(self.model.visual, self._visual_facts)

    def _text_facts(self) -> dict[str, Any]:
        return {
            "space": "word",
            "version": _SPACE_VERSION,
            "context_length": self.context_length,
            "start_ids": self.start_ids,
            "end_ids": self.end_ids,
            "clean": self.text_clean,
            "vocabulary": self.words.vocabulary(),
            "tower": self.text.facts(),
        }

    def _visual_facts(self) -> dict[str, Any]:
        return {"tower": visual_facts(self.model.visual), "preprocessing": self.preprocessing.to_json()}

    def target_spaces(self, union_head: nn.Module | None) -> dict[str, str]:
        """Return target type -> the digest that names the space of such a gallery; without a head, no `union`."""
        visual = {f"visual.{name}": value for name, value in self.model.visual.state_dict().items()}
        facts = {
            "space": "target",
            "version": _SPACE_VERSION,
            "word_space": self.word_space(),
            "null": PROMPTS["null"],
            "preprocessing": self.preprocessing.to_json(),
            "tower": visual_facts(self.model.visual),
        }
        weights = {"original": visual, "sum": visual}
        if union_head is not None:
            head = {f"union.{name}": value for name, value in union_head.state_dict().items()}
            weights = {"union": visual | head, **weights}
        return {target: digest(weights=used, facts=facts | {"target": target}) for target, used in weights.items()}


def load_foundation(name: str, pretrained: str | None = None) -> Foundation:
    """Load a foundation.

    Args:
        name: an open_clip architecture ("ViT-L-14"), "local-dir:FOLDER" with `open_clip_config.json` and
            `open_clip_model.safetensors` in it, or "blip:FOLDER" and "blip:OWNER/NAME" (see `load_blip`).
        pretrained: a pretrained tag of that architecture ("openai") or the path of a checkpoint; None for a folder.

    Raises:
        FoundationError: unknown architecture or tag (names the nearest), or weights that cannot be had.
    """
    if name.startswith(BLIP_SCHEME):
        if pretrained is not None:
            raise FoundationError(f"{name!r} brings its own weights: leave the pretrained weights {pretrained!r} away")
        blip, words = load_blip(name.removeprefix(BLIP_SCHEME))
        return Foundation(_label(name, None), blip, words)
    if not name.startswith(("local-dir:", "hf-hub:")):
        _check_known(name, pretrained)
    try:
        model, _, _ = open_clip.create_model_and_transforms(
            name,
            pretrained=pretrained,
            force_quick_gelu=needs_quick_gelu(name, pretrained),
            **_find_text_tower(name),
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError, FileNotFoundError) as exc:
        detail = " ".join(str(exc).split())[:_DETAIL_LENGTH] or type(exc).__name__
        tag = f" with weights {pretrained!r}" if pretrained else ""
        raise FoundationError(
            f"cannot load the foundation {name!r}{tag}: {detail}; fetch its checkpoint where a network is at hand and "
            "pass its path as the pretrained weights, or a folder as local-dir:FOLDER"
        ) from exc
    return Foundation(_label(name, pretrained), model, tokenizer)


def _find_text_tower(name: str) -> dict[str, Any]:
    """Point a folder's Hugging Face text tower to where it lies now.

    open_clip takes the path in the folder's configuration as it stands, so that a folder could not be moved.
    """
    folder = Path(name.removeprefix("local-dir:"))
    if not name.startswith("local-dir:") or not (folder / CONFIG_FILE).is_file():
        return {}
    text = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("model_cfg", {}).get("text_cfg", {})
    inside = folder / Path(str(text.get("hf_model_name", ""))).name
    if "hf_model_name" not in text or not (inside / "config.json").is_file():
        return {}
    return {"text_cfg": {**text, "hf_model_name": str(inside), "hf_tokenizer_name": str(inside)}}


def needs_quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether a tag was trained with QuickGELU; open_clip only warns where its architecture was not.

    Raises:
        FoundationError: the architecture has QuickGELU built in, and the tag was trained without.
    """
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    if not tag:  # a local checkpoint or folder: its architecture's own activation
        return False
    trained_with = bool(tag.get("quick_gelu", False))
    if (open_clip.get_model_config(name) or {}).get("quick_gelu", False) and not trained_with:
        raise FoundationError(
            f"the weights {pretrained!r} were not trained with QuickGELU, the architecture {name!r} has it: "
            f"take {name.removesuffix('-quickgelu')!r}"
        )
    return trained_with


def _label(name: str, pretrained: str | None) -> str:
    """Name a foundation in manifests: never by a path of this machine."""
    for scheme in ("local-dir:", BLIP_SCHEME):
        folder = Path(name.removeprefix(scheme))
        if name.startswith(scheme) and (scheme != BLIP_SCHEME or folder.is_dir()):
            return f"{scheme}{folder.resolve().name}"
    if pretrained is None:
        return name
    return f"{name}/{Path(pretrained).name}"


def visual_facts(visual: Any) -> dict[str, Any]:
    """Return what a visual tower computes with beside its weights."""
    if isinstance(visual, BlipVisual):
        return visual.facts()
    if hasattr(visual, "trunk"):
        record = visual.trunk.pretrained_cfg
        return {
            "kind": "timm",
            "architecture": str(record.get("architecture", type(visual.trunk).__name__)),
            "pool": str(getattr(visual.trunk, "global_pool", type(visual.trunk).__name__)),
            "activation": activation_name(visual.trunk),
        }
    block = getattr(getattr(visual, "transformer", None), "resblocks", [None])[0]
    heads = getattr(getattr(block, "attn", None), "num_heads", None)
    pool = str(getattr(visual, "pool_type", ""))
    return {"kind": type(visual).__name__, "heads": heads, "pool": pool, "activation": activation_name(visual)}


def _check_known(name: str, pretrained: str | None) -> None:
    known = open_clip.list_models()
    if ":" in name:
        kinds = ["local-dir:FOLDER", "hf-hub:OWNER/NAME", f"{BLIP_SCHEME}FOLDER"]
        asked = name.partition(":")[0]
        nearest = max(kinds, key=lambda kind: difflib.SequenceMatcher(None, asked, kind.partition(":")[0]).ratio())
        raise FoundationError(f"unknown kind of foundation {name!r}: expected {', '.join(kinds)}; nearest: {nearest}")
    if name not in known:
        nearest = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3)) or "see open_clip.list_models()"
        raise FoundationError(f"unknown architecture {name!r}; nearest: {nearest}")
    if pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise FoundationError(f"{name!r} needs pretrained weights: a tag ({tags}) or the path of a checkpoint")


def _read_preprocessing(model: Any) -> Preprocessing:
    if isinstance(model, BlipModel):
        return model.preprocessing
    record = open_clip.get_model_preprocess_cfg(model)
    size = record["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise FoundationError(f"expected a foundation with square pictures, got {height}x{width}")
    red, green, blue = record.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std_red, std_green, std_blue = record.get("std") or open_clip.OPENAI_DATASET_STD
    interpolation = record.get("interpolation", "bicubic")
    return Preprocessing(
        size=int(height),
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        mean=(float(red), float(green), float(blue)),
        std=(float(std_red), float(std_green), float(std_blue)),
        resize=record.get("resize_mode", "shortest"),
    )

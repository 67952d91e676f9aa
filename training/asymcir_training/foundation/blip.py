"""BLIP's image-text retrieval model as a foundation: both towers, their projections and the matching head.

The weights are those of transformers' `BlipForImageTextRetrieval`. Nothing else in asymcir knows that class; the
foundation's interface (model.py) stands over this module as it does over open_clip.

Notation: b batch, T tokens, D word-embedding width, E joint-embedding width, S picture side, P patches, C width of the
visual tower.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from asymcir_common import Preprocessing
from safetensors import SafetensorError
from torch import Tensor, nn

from asymcir_training.errors import FoundationError
from asymcir_training.foundation.text_towers import BlipTextTower

SCHEME = "blip:"
"""What a foundation's name starts with."""

CHECKPOINTS = (
    "Salesforce/blip-itm-base-coco",
    "Salesforce/blip-itm-base-flickr",
    "Salesforce/blip-itm-large-coco",
    "Salesforce/blip-itm-large-flickr",
)
"""The published retrieval models; a fine-tuned one under another name is loaded alike."""

MATCHING_START = "[ENC]"
DECODER_START = "[DEC]"
"""BLIP adds both to BERT's vocabulary, in the order [DEC], [ENC]; no text is made of them."""

_FILES = (
    "config.json, model.safetensors (or pytorch_model.bin), tokenizer.json (or vocab.txt), tokenizer_config.json and "
    "preprocessor_config.json"
)
_INTERPOLATIONS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DETAIL_LENGTH = 300
_VISUAL_FACTS = ("hidden_act", "layer_norm_eps", "num_attention_heads")


class BlipVisual(nn.Module):
    """BLIP's vision transformer and its projection into the joint space."""

    def __init__(self, tower: Any, projection: nn.Linear) -> None:
        super().__init__()
        self.tower = tower
        self.proj = projection

    def facts(self) -> dict[str, Any]:
        """Return what the tower computes with beside its weights, for `target_space`."""
        config = self.tower.config.to_dict()
        return {"kind": "blip", "pool": "first"} | {key: config[key] for key in _VISUAL_FACTS}

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pictures: [b, 3, S, S] normalised -> image features [b, E], from [CLS], not normalised."""
        return self.proj(self.encode_states(pixels)[:, 0])

    def encode_states(self, pixels: Tensor) -> Tensor:
        """Return the hidden states after the last norm: [b, 3, S, S] -> [b, P + 1, C], [CLS] first."""
        states: Tensor = self.tower(pixel_values=pixels).last_hidden_state
        return states

    def encode_patches(self, pixels: Tensor) -> Tensor:
        """Project each patch into the joint space: [b, 3, S, S] -> [b, P, E], not normalised.

        BLIP was trained to project [CLS] alone; that a patch may take the same way is our assumption.
        """
        return self.proj(self.encode_states(pixels)[:, 1:])


class BlipModel(nn.Module):
    """The parts of `BlipForImageTextRetrieval` under the names that a foundation looks for.

    Attributes:
        visual: the visual tower.
        text: the text tower, which is the matching encoder too.
        itm_head: Linear(D, 2), "no match" and "match".
        preprocessing: how pictures come in.
    """

    def __init__(self, parts: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.visual = BlipVisual(parts.vision_model, parts.vision_proj)
        self.text = BlipTextTower(parts.text_encoder, parts.text_proj)
        self.itm_head: nn.Linear = parts.itm_head
        self.preprocessing = preprocessing

    def match(self, word_embeddings: Tensor, attention_mask: Tensor, image_states: Tensor) -> Tensor:
        """Ask the matching encoder and its head whether words and picture belong together.

        Args:
            word_embeddings: [b, T, D], the row of [CLS] first, as transformers and BLIP's own scoring code have it;
                BLIP's retrieval training puts [ENC] there.
            attention_mask: [b, T], int64, 1 for words and 0 for padding.
            image_states: [b, P + 1, C].

        Returns:
            Logits [b, 2].

        Source: BLIP (arXiv:2201.12086), its `blip_itm.py` and `blip_retrieval.py`.
        """
        return self.itm_head(self.text.encode_pair(word_embeddings, attention_mask, image_states))


def load_blip(where: str) -> tuple[BlipModel, Any]:
    """Load a BLIP retrieval model, in float32, and its tokenizer as open_clip wraps one.

    Args:
        where: a folder as `BlipForImageTextRetrieval.save_pretrained` and the processor's `save_pretrained` write it,
            or a name on the Hugging Face hub, fetched into its cache on first use.

    Raises:
        FoundationError: no such folder, a file missing, another kind of model, or a name that cannot be fetched (the
            message says what to fetch and where to put it).
    """
    source = _find(where)
    try:
        parts = _load_parts(source)
        tokenizer = _load_tokenizer(source, context_length=int(parts.config.text_config.max_position_embeddings))
        preprocessing = _read_preprocessing(source, int(parts.config.vision_config.image_size))
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as exc:
        detail = " ".join(str(exc).split())[:_DETAIL_LENGTH] or type(exc).__name__
        raise FoundationError(f"cannot load the foundation {SCHEME}{where}: {detail}; {_advice(where)}") from exc
    words, rows = len(tokenizer.tokenizer), int(parts.config.text_config.vocab_size)
    if words > rows:
        raise FoundationError(
            f"the tokenizer of {SCHEME}{where} has {words} words, the model's table {rows} rows: expected the "
            "tokenizer that the model was trained with"
        )
    return BlipModel(parts, preprocessing), tokenizer


def _find(where: str) -> str:
    """Return the folder or hub name to load, having refused what is neither."""
    folder = Path(where)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FoundationError(f"expected a BLIP model in {folder} with {_FILES}; there is no config.json")
        return str(folder)
    if _HUB_NAME.fullmatch(where):
        return where
    parent = folder.parent
    beside = sorted(entry.name for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
    nearest = ", ".join(
        [str(parent / name) for name in difflib.get_close_matches(folder.name, beside, n=2)]
        + difflib.get_close_matches(where, CHECKPOINTS, n=1, cutoff=0.0)
    )
    raise FoundationError(
        f"expected {SCHEME}FOLDER or {SCHEME}OWNER/NAME, and there is no folder {where!r}; nearest: {nearest}"
    )


def _advice(where: str) -> str:
    if Path(where).is_dir():
        return f"expected a folder with {_FILES}"
    unknown = "no folder of that name here; "
    if where not in CHECKPOINTS:
        nearest = ", ".join(difflib.get_close_matches(where, CHECKPOINTS, n=2, cutoff=0.0))
        unknown += f"nearest published model: {nearest}; "
    return (
        f"{unknown}where a network is at hand, run `hf download {where} --local-dir FOLDER` (it needs {_FILES}), copy "
        f"that folder here and pass {SCHEME}FOLDER"
    )


def _load_parts(source: str) -> Any:
    from transformers import AutoConfig, BlipConfig, BlipForImageTextRetrieval

    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, BlipConfig):
        raise FoundationError(f"expected a BLIP model at {SCHEME}{source}, got model_type {config.model_type!r}")
    # In float32 whatever it was saved in: transformers would keep half precision, and digests hash float32.
    loaded: Any = BlipForImageTextRetrieval.from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True
    )
    parts, record = loaded
    missing = sorted(record["missing_keys"])
    if missing:  # transformers fills them with random numbers and only logs it
        raise FoundationError(
            f"the weights at {SCHEME}{source} lack {len(missing)} tensors of the retrieval model, first {missing[0]}: "
            f"expected a BlipForImageTextRetrieval such as {CHECKPOINTS[0]}, not BLIP for captions or questions"
        )
    return parts


def _load_tokenizer(source: str, *, context_length: int) -> Any:
    """Load the tokenizer, without the decoder's tokens, as open_clip wraps one."""
    from open_clip.tokenizer import HFTokenizer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise FoundationError(f"expected tokenizer.json or vocab.txt in {source}, found neither: copy it there too")
    wrapper = HFTokenizer(source, context_length=context_length, clean="whitespace", strip_sep_token=False)
    inner = wrapper.tokenizer
    record = json.loads(inner.backend_tokenizer.to_str())
    kept = [token for token in record["added_tokens"] if token["content"] not in {DECODER_START, MATCHING_START}]
    if len(kept) < len(record["added_tokens"]):
        record["added_tokens"] = kept
        wrapper.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(record)),
            unk_token=inner.unk_token,
            cls_token=inner.cls_token,
            sep_token=inner.sep_token,
            pad_token=inner.pad_token,
            mask_token=inner.mask_token,
        )
    return wrapper


def _read_preprocessing(source: str, side: int) -> Preprocessing:
    """Read the processor's configuration; BLIP squashes pictures to a square, whatever their shape."""
    from transformers import BlipImageProcessor

    processor: Any = BlipImageProcessor.from_pretrained(source)
    height, width = processor.size.height, processor.size.width
    if not height == width == side:
        raise FoundationError(
            f"expected pictures of {side}x{side} as the position embeddings have, the processor's configuration at "
            f"{SCHEME}{source} says size {dict(processor.size)}: copy the processor that belongs to the weights"
        )
    interpolation = _INTERPOLATIONS.get(int(processor.resample))
    if interpolation is None:
        raise FoundationError(f"expected resample 2 (bilinear) or 3 (bicubic), got {processor.resample!r}")
    if not (processor.do_resize and processor.do_rescale and processor.do_normalize):
        raise FoundationError("expected a processor that resizes, rescales and normalises, as every published BLIP has")
    red, green, blue = processor.image_mean
    std_red, std_green, std_blue = processor.image_std
    return Preprocessing(
        size=side,
        interpolation=interpolation,
        mean=(float(red), float(green), float(blue)),
        std=(float(std_red), float(std_green), float(std_blue)),
        resize="squash",
    )

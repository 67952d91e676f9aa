"""Text towers that start from word embeddings, so that sentence tokens can stand among words.

open_clip's `encode_text` starts from token ids and insists on full rows. These modules share its weights and run the
tower's own parts, with the end-of-text position as an explicit input (an ArgMax inside breaks exports).

Notation: b batch, T tokens, D word-embedding width, E joint-embedding width, P patches, C width of the visual tower.
"""

from typing import Any

import torch
from torch import Tensor, nn

from asymcir_training.errors import FoundationError


class ClipTextTower(nn.Module):
    """open_clip's own text transformer, causal (CLIP) or not (SigLIP, CLIPA, MobileCLIP)."""

    def __init__(self, parts: Any, *, pool_type: str) -> None:
        super().__init__()
        if getattr(parts, "use_pad_mask", False):
            raise FoundationError("this text tower masks its padding by token id; open_clip's configs build none such")
        if getattr(parts, "cls_emb", None) is not None:
            raise FoundationError(
                "this text tower appends a class token (CoCa); use a CLIP, SigLIP or Hugging Face tower"
            )
        if pool_type not in {"argmax", "eos", "first", "last"}:
            raise FoundationError(f"expected a text tower that pools argmax, eos, first or last, got {pool_type!r}")
        self.word_embedding = parts.token_embedding
        self.positional_embedding = parts.positional_embedding
        self.transformer = parts.transformer
        self.ln_final = parts.ln_final
        self.text_projection = parts.text_projection
        self.pool_type = pool_type
        self.causal = parts.attn_mask is not None
        self.attn_mask: Tensor
        if self.causal:
            self.register_buffer("attn_mask", parts.attn_mask.detach().clone(), persistent=False)

    def facts(self) -> dict[str, Any]:
        """Return what the tower computes with beside its weights, for `word_space`."""
        return {
            "kind": "clip",
            "causal": self.causal,
            "pool": self.pool_type,
            "heads": self.transformer.resblocks[0].attn.num_heads,
            "norm_eps": self.ln_final.eps,
            "activation": activation_name(self.transformer),
        }

    @property
    def pads_to_context(self) -> bool:
        """Whether the tower attends to padding, so that rows must always be padded to the whole context."""
        return not self.causal

    @property
    def embedding_width(self) -> int:
        """Width E of the text features."""
        if self.text_projection is None:
            return int(self.positional_embedding.shape[1])
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection.out_features
        return int(self.text_projection.shape[1])

    def forward(self, word_embeddings: Tensor, attention_mask: Tensor, pool_index: Tensor) -> Tensor:
        """Run the tower: [b, T, D], [b, T] (unused), [b] -> text features [b, E], not normalised."""
        return self.encode_with_places(word_embeddings, attention_mask, pool_index)[0]

    def encode_with_places(
        self, word_embeddings: Tensor, attention_mask: Tensor, pool_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the tower: text features [b, E] and, for every place, its output projected alike [b, T, E]."""
        del attention_mask  # a causal tower never looks at padding, the others were trained to read it
        length = word_embeddings.shape[1]
        x = word_embeddings + self.positional_embedding[:length]
        mask = self.attn_mask[:length, :length] if self.causal else None
        x = self.ln_final(self.transformer(x, attn_mask=mask))  # [b, T, D]
        return self._project(self._pool(x, pool_index)), self._project(x)

    def _pool(self, x: Tensor, pool_index: Tensor) -> Tensor:
        if self.pool_type == "first":
            return x[:, 0]
        if self.pool_type == "last":
            return x[:, -1]
        return x[torch.arange(x.shape[0], device=x.device), pool_index]  # [b, D]

    def _project(self, x: Tensor) -> Tensor:
        if self.text_projection is None:
            return x
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x @ self.text_projection


class HuggingFaceTextTower(nn.Module):
    """open_clip's Hugging Face text tower: bidirectional, with a padding mask, pooled and projected as configured."""

    causal = False
    pads_to_context = False

    def __init__(self, encoder: Any, embedding_width: int) -> None:
        super().__init__()
        self.transformer = encoder.transformer
        self.pooler = encoder.pooler
        self.proj = encoder.proj
        self.embedding_width = embedding_width
        self.word_embedding = self.transformer.get_input_embeddings()

    def facts(self) -> dict[str, Any]:
        """Return what the tower computes with beside its weights, for `word_space`."""
        config = self.transformer.config.to_dict()
        return {"kind": "hugging face", "pool": type(self.pooler).__name__} | {
            key: config[key] for key in _HUGGING_FACE_FACTS if key in config
        }

    def forward(self, word_embeddings: Tensor, attention_mask: Tensor, pool_index: Tensor) -> Tensor:
        """Run the tower: [b, T, D], [b, T], [b] (unused) -> text features [b, E], not normalised."""
        return self.encode_with_places(word_embeddings, attention_mask, pool_index)[0]

    def encode_with_places(
        self, word_embeddings: Tensor, attention_mask: Tensor, pool_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the tower: text features [b, E] and, for every place, its output projected alike [b, T, E]."""
        del pool_index
        output = self.transformer(inputs_embeds=word_embeddings, attention_mask=attention_mask)
        return self.proj(self.pooler(output, attention_mask)), self.proj(output.last_hidden_state)


class BlipTextTower(nn.Module):
    """BLIP's BERT: bidirectional, with a padding mask, pooled at [CLS]; with image states it is the matching encoder.

    Its decoder part is not used, so that no token sees less than the others.
    """

    causal = False
    pads_to_context = False

    def __init__(self, encoder: Any, projection: nn.Linear) -> None:
        super().__init__()
        self.transformer = encoder
        self.proj = projection
        self.embedding_width = projection.out_features
        self.word_embedding = encoder.get_input_embeddings()

    def facts(self) -> dict[str, Any]:
        """Return what the tower computes with beside its weights, for `word_space`."""
        config = self.transformer.config.to_dict()
        return {"kind": "blip", "pool": "first"} | {key: config[key] for key in _BLIP_FACTS}

    def forward(self, word_embeddings: Tensor, attention_mask: Tensor, pool_index: Tensor) -> Tensor:
        """Run the tower: [b, T, D], [b, T], [b] (unused) -> text features [b, E], not normalised."""
        return self.encode_with_places(word_embeddings, attention_mask, pool_index)[0]

    def encode_with_places(
        self, word_embeddings: Tensor, attention_mask: Tensor, pool_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the tower: text features [b, E] and, for every place, its output projected alike [b, T, E]."""
        del pool_index
        places = self.proj(self._read(word_embeddings, attention_mask))
        return places[:, 0], places

    def encode_pair(self, word_embeddings: Tensor, attention_mask: Tensor, image_states: Tensor) -> Tensor:
        """Read words while looking at a picture, through the cross-attention.

        Args:
            word_embeddings: [b, T, D].
            attention_mask: [b, T], int64, 1 for words and 0 for padding.
            image_states: [b, P + 1, C], the visual tower's hidden states, not projected.

        Returns:
            The first place's output [b, D], which the matching head reads.
        """
        return self._read(word_embeddings, attention_mask, encoder_hidden_states=image_states)[:, 0]

    def _read(self, word_embeddings: Tensor, attention_mask: Tensor, **picture: Tensor) -> Tensor:
        # transformers adds the position embeddings in place: without the copy, to the caller's own words.
        output = self.transformer(inputs_embeds=word_embeddings.clone(), attention_mask=attention_mask, **picture)
        hidden: Tensor = output.last_hidden_state  # [b, T, D]
        return hidden


_BLIP_FACTS = ("hidden_act", "layer_norm_eps", "num_attention_heads")

_HUGGING_FACE_FACTS = (
    "hidden_act",
    "is_decoder",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "model_type",
    "num_attention_heads",
    "num_heads",
    "pad_token_id",
)


def activation_name(module: nn.Module) -> str:
    """Name the activations of a tower ("GELU", "QuickGELU", "ReLU6"), which no weight shows."""
    names = {type(part).__name__ for part in module.modules()}
    return ",".join(sorted(name for name in names if name.lower().endswith(_ACTIVATIONS)))


_ACTIVATIONS = ("elu", "elu6", "silu", "swish", "sigmoid", "tanh", "mish", "gelutanh", "act")


TextTower = ClipTextTower | HuggingFaceTextTower | BlipTextTower


def build_text_tower(model: Any) -> TextTower:
    """Wrap the text tower of an open_clip model; BLIP's comes wrapped.

    Raises:
        FoundationError: a tower whose forward pass from word embeddings is not known.
    """
    text = getattr(model, "text", None)
    if text is None:  # open_clip.CLIP keeps the parts of its tower on the model itself
        return ClipTextTower(model, pool_type=model.text_pool_type)
    if isinstance(text, BlipTextTower):
        return text
    kind = type(text).__name__
    if kind == "TextTransformer":
        return ClipTextTower(text, pool_type=text.pool_type)
    if kind == "HFTextEncoder":
        return HuggingFaceTextTower(text, text.output_dim)
    raise FoundationError(f"expected open_clip's CLIP, TextTransformer or HFTextEncoder text tower, got {kind}")

"""TransAgg, the query fusion that UNION trains its targets with: text tokens and image tokens through a transformer.

What was read in the public code of UNION (arXiv:2511.22253) and of TransAgg (its own repository): the sequence [text
tokens | learned separator | image tokens] of projected, un-normalised token embeddings, the class token first among the
image's (its projection is the image embedding itself); two pre-norm GELU layers with 8 heads, FFN 2048, dropout 0.1;
the outputs at the image's class token and at the text's end-of-text token (the class token with BLIP), concatenated,
image first; Linear 8d, ReLU, dropout, Linear d; three weights without softmax over text, fused and image embedding.

What is ours: towers without a class token (timm's) put their pooled embedding first in its place; a text whose tower
pools elsewhere (the mean, say) is read at its end-of-text token; and padding is masked out. The public code joins a
boolean text mask with a float image mask, which torch then adds to the attention scores: its padding is attended to,
and a little more than the words.

Notation: b batch, T text tokens, P patches, E joint-embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

from asymcir_training.errors import DataError, FoundationError
from asymcir_training.foundation.model import Foundation

HEADS = 8
LAYERS = 2
FEED_FORWARD_WIDTH = 2048
DROPOUT = 0.1
_POOLS_FIRST = ("first", "ClsPooler", "ClsLastHiddenStatePooler")  # text towers that pool their class token


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPlaces:
    """Texts as a frozen text tower gives them.

    Attributes:
        features: [b, E], not normalised.
        tokens: [b, T, E], the tower's output at each place, projected, not normalised.
        padding: [b, T], bool, true where a row has ended.
        place: [b], int64, where the fusion reads the text: its class token or its end-of-text token.
    """

    features: Tensor
    tokens: Tensor
    padding: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def pick(self, index: Tensor) -> "TextPlaces":
        """Return some of the texts, cut at the longest among them: the same values, as padding is masked."""
        length = int((~self.padding[index]).sum(dim=1).max())
        return TextPlaces(
            features=self.features[index],
            tokens=self.tokens[index, :length],
            padding=self.padding[index, :length],
            place=self.place[index],
        )

    def to(self, device: torch.device | str) -> "TextPlaces":
        """Move every tensor."""
        return TextPlaces(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class TransAgg(nn.Module):
    """(image, text) -> query embedding.

    Args:
        embedding_width: E, a multiple of HEADS.

    Raises:
        FoundationError: a width that the heads do not divide.
    """

    def __init__(self, embedding_width: int) -> None:
        super().__init__()
        if embedding_width % HEADS:
            raise FoundationError(f"expected a joint-embedding width that {HEADS} heads divide, got {embedding_width}")
        width = embedding_width
        self.embedding_width = width
        layer = nn.TransformerEncoderLayer(
            width,
            HEADS,
            dim_feedforward=FEED_FORWARD_WIDTH,
            dropout=DROPOUT,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.separator = nn.Parameter(torch.randn(1, 1, width))
        # Nested tensors would cut the padding away in evaluation alone, by another code path than training's.
        self.fusion = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.combine = nn.Sequential(
            nn.Linear(2 * width, 8 * width), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(8 * width, width)
        )
        self.weights = nn.Linear(width, 3)

    def forward(self, image_features: Tensor, patches: Tensor, text: TextPlaces) -> Tensor:
        """Fuse.

        Args:
            image_features: [b, E], not normalised.
            patches: [b, P, E], projected into the joint space, not normalised.
            text: b modifiers.

        Returns:
            Query embeddings [b, E], L2-normalised.

        Raises:
            DataError: counts or widths that do not belong together.
        """
        count, width = image_features.shape
        if len(patches) != count or len(text) != count or patches.shape[2] != width or text.tokens.shape[2] != width:
            raise DataError(
                f"expected {count} rows of width {width}, got patches {list(patches.shape)} and text tokens "
                f"{list(text.tokens.shape)}"
            )
        image_tokens = torch.cat([image_features[:, None], patches.to(image_features.dtype)], dim=1)  # [b, 1 + P, E]
        separator = self.separator.expand(count, -1, -1)
        sequence = torch.cat([text.tokens.to(image_features.dtype), separator, image_tokens], dim=1)
        seen = text.padding.new_zeros(count, separator.shape[1] + image_tokens.shape[1])
        encoded = self.fusion(sequence, src_key_padding_mask=torch.cat([text.padding, seen], dim=1))
        length = text.tokens.shape[1]
        rows = torch.arange(count, device=encoded.device)
        both = torch.cat([encoded[:, length + 1], encoded[rows, text.place]], dim=1)  # [b, 2E], image first
        fused = self.combine(both)
        weights = self.weights(fused)  # [b, 3]
        query = weights[:, :1] * text.features + weights[:, 1:2] * fused + weights[:, 2:] * image_features
        return functional.normalize(query, dim=-1)


@torch.no_grad()
def encode_text_places(foundation: Foundation, texts: Sequence[str]) -> TextPlaces:
    """Encode modifiers with the frozen text tower, keeping its output at every place. Longer ones are cut."""
    embeddings, mask, end = foundation._embed_rows([foundation.tokenize(text) for text in texts])
    features, tokens = foundation.text.encode_with_places(embeddings, mask, end)
    place = torch.zeros_like(end) if foundation.text.facts()["pool"] in _POOLS_FIRST else end
    return TextPlaces(features=features, tokens=tokens, padding=mask == 0, place=place)

"""The student: any timm backbone and the adaptive token learner, image -> sentence tokens.

Notation: b batch, S picture side, c channels of the feature map, h, w its sides, L sentence tokens, d inner width,
D word-embedding width.
"""

import difflib
from typing import Any

import timm
import torch
from asymcir_common import Preprocessing
from torch import Tensor, nn

from asymcir_training.errors import FoundationError

ATTENTION_HEADS = 8


class AdaptiveTokenLearner(nn.Module):
    """Feature map [b, c, h, w] -> sentence tokens [b, L, D].

    Each location is shared out among L groups (softmax over the groups); a token is an embedding of its own plus the
    mean of the locations, weighted by its shares; then self-attention among tokens, cross-attention to the feature map,
    and an FFN to the word width, which starts at a region of the word table of its own for each token.

    Token embeddings and regions tell one token from another: without them every token starts as the mean of the map,
    and training keeps them equal. The wiring is our reading of ISA (arXiv:2403.01431) and of its closest public
    relative, Wu et al., AAAI 2022; the paper's own figure could not be checked, so it is an adaptation.
    """

    def __init__(self, channels: int, *, sentence_length: int, width: int, word_width: int) -> None:
        super().__init__()
        if sentence_length < 1 or width < 1 or width % ATTENTION_HEADS:
            raise FoundationError(
                f"expected 1 or more sentence tokens and an inner width that {ATTENTION_HEADS} heads divide, got "
                f"{sentence_length} and {width}"
            )
        self.project = nn.Conv2d(channels, width, 1)
        self.map_norm = nn.LayerNorm(width)
        self.groups = nn.Linear(width, sentence_length)
        nn.init.orthogonal_(self.groups.weight)  # logits of spread 1, which differ from group to group
        self.token_embeddings = nn.Parameter(torch.randn(sentence_length, width))
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, ATTENTION_HEADS, batch_first=True)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(width, ATTENTION_HEADS, batch_first=True)
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, word_width))
        # Where words live: each token starts at a region of the word-embedding table, with the spread of the table.
        self.word_means = nn.Parameter(torch.zeros(sentence_length, word_width))
        self.word_scale = nn.Parameter(torch.ones(word_width))

    def forward(self, feature_map: Tensor) -> Tensor:
        """Turn [b, c, h, w] into [b, L, D]."""
        return self.attend(feature_map)[0]

    def attend(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Turn [b, c, h, w] into tokens [b, L, D] and where each looks: maps [b, L, h, w] that sum up to 1."""
        places = self.map_norm(self.project(feature_map).flatten(2).transpose(1, 2))  # [b, h*w, d]
        logits = self.groups(places).transpose(1, 2)  # [b, L, h*w]
        # In logarithms: a group that is small everywhere keeps its weights, which fp16 would round to zero. The
        # greatest is taken off before exp, whose result ends at 65504 there.
        logits = logits - logits.amax(dim=1, keepdim=True)
        shares = logits - logits.exp().sum(dim=1, keepdim=True).log()  # log softmax over the groups at each location
        weights = shares.softmax(dim=2)  # [b, L, h*w]: each group's shares over their sum
        tokens = self.token_embeddings + weights @ places  # [b, L, d]
        y = self.self_norm(tokens)
        tokens = tokens + self.self_attention(y, y, y, need_weights=False)[0]
        tokens = tokens + self.cross_attention(self.cross_norm(tokens), places, places, need_weights=False)[0]
        tokens = self.word_means + self.word_scale * self.out(self.out_norm(tokens))
        return tokens, weights.unflatten(2, feature_map.shape[2:])

    @torch.no_grad()
    def anchor_to_words(self, table: Tensor) -> None:
        """Start the outputs in regions of the word-embedding table [V, D], with its spread.

        The regions are the means of L clusters by k-means (Lloyd's algorithm, ten rounds) from L rows that are spread
        evenly over the table.
        """
        length = len(self.word_means)
        if length > len(table):
            raise FoundationError(f"expected a table of {length} or more words, one for each token, got {len(table)}")
        means = table[torch.linspace(0, len(table) - 1, length).long()].clone()
        for _ in range(10):
            nearest = torch.cdist(table, means).argmin(dim=1)
            for number in range(length):
                if bool((nearest == number).any()):
                    means[number] = table[nearest == number].mean(dim=0)
        self.word_means.copy_(means)
        self.word_scale.copy_(table.std(dim=0))


class LightEncoder(nn.Module):
    """A timm backbone and a token learner: [b, 3, S, S] normalised pixels -> sentence tokens [b, L, D].

    Args:
        backbone: timm model name; any that gives a feature map [b, c, h, w], [b, h, w, c] or tokens [b, n, c].
        sentence_length: L.
        word_width: D of the foundation.
        width: inner width d of the token learner.
        preprocessing: how pictures come in; bilinear, which Core ML can do.

    Raises:
        FoundationError: unknown backbone (names the nearest), or widths that do not fit.
    """

    def __init__(
        self,
        backbone: str,
        *,
        sentence_length: int = 6,
        word_width: int,
        width: int = 512,
        preprocessing: Preprocessing,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(backbone.split(".")[0]):
            nearest = ", ".join(difflib.get_close_matches(backbone, timm.list_models(), n=3, cutoff=0.3))
            raise FoundationError(f"unknown timm backbone {backbone!r}; nearest: {nearest or 'see timm.list_models()'}")
        self.config = {
            "backbone": backbone,
            "sentence_length": sentence_length,
            "word_width": word_width,
            "width": width,
            "preprocessing": preprocessing.to_json(),
        }
        self.preprocessing = preprocessing
        self.sentence_length = sentence_length
        self.word_width = word_width
        self.backbone: Any = timm.create_model(backbone, pretrained=pretrained, num_classes=0, global_pool="")
        channels = self._probe_channels()
        self.token_learner = AdaptiveTokenLearner(
            channels, sentence_length=sentence_length, width=width, word_width=word_width
        )

    def feature_map(self, pixels: Tensor) -> Tensor:
        """Return the backbone's last feature map [b, c, h, w]."""
        features = self.backbone.forward_features(pixels)
        if features.ndim == 3:  # a transformer's tokens: drop class and register tokens, restore the grid
            patches = features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
            side = round(patches.shape[1] ** 0.5)
            return patches.transpose(1, 2).reshape(patches.shape[0], -1, side, side)
        if features.shape[1] != self.backbone.num_features and features.shape[-1] == self.backbone.num_features:
            return features.permute(0, 3, 1, 2)
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn normalised pixels [b, 3, S, S] into sentence tokens [b, L, D]."""
        return self.token_learner(self.feature_map(pixels))

    def forward_with_maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Turn normalised pixels [b, 3, S, S] into tokens [b, L, D] and their attention maps [b, L, h, w]."""
        return self.token_learner.attend(self.feature_map(pixels))

    @torch.no_grad()
    def _probe_channels(self) -> int:
        was_training = self.backbone.training
        self.backbone.eval()
        size = self.preprocessing.size
        channels = int(self.feature_map(torch.zeros(1, 3, size, size)).shape[1])
        self.backbone.train(was_training)
        return channels

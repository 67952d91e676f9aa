"""The UNION head: how much of a gallery item's target representation is image and how much null text.

Source: UNION, arXiv:2511.22253, and its public code: a randomly initialised T5 encoder stack over the two tokens
[image, null text], then an MLP to one gate. There is no final sigmoid: the gate is unbounded. Written anew from that
description.

Notation: b batch, E joint-embedding width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS = 4
HEAD_WIDTH = 64
FEED_FORWARD_WIDTH = 2048
DROPOUT = 0.1
_BUCKETS = 32
_MAX_DISTANCE = 128
_EPS = 1e-6


class RmsNorm(nn.Module):
    """T5's layer norm: no mean subtraction, no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis by its root mean square."""
        return self.weight * x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + _EPS)


class T5Block(nn.Module):
    """Pre-norm self-attention (unscaled, with a relative position bias) and a ReLU feed-forward, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_WIDTH
        self.heads = heads
        self.attention_norm = RmsNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.feed_forward_norm = RmsNorm(width)
        self.expand = nn.Linear(width, FEED_FORWARD_WIDTH, bias=False)
        self.contract = nn.Linear(FEED_FORWARD_WIDTH, width, bias=False)
        self.dropout = nn.Dropout(DROPOUT)
        # T5's initialisation, which stands in for the missing 1/sqrt(d) of its attention.
        nn.init.normal_(self.query.weight, std=(width * HEAD_WIDTH) ** -0.5)
        for linear in (self.key, self.value, self.expand):
            nn.init.normal_(linear.weight, std=width**-0.5)
        nn.init.normal_(self.output.weight, std=inner**-0.5)
        nn.init.normal_(self.contract.weight, std=FEED_FORWARD_WIDTH**-0.5)

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        """Run one block: x [b, n, E], position_bias [1, heads, n, n] -> [b, n, E]."""
        y = self.attention_norm(x)
        q, k, v = (self._split(linear(y)) for linear in (self.query, self.key, self.value))  # [b, heads, n, 64]
        weights = self.dropout((q @ k.transpose(-1, -2) + position_bias).softmax(dim=-1))
        attended = (weights @ v).transpose(1, 2).flatten(2)  # [b, n, inner]
        x = x + self.dropout(self.output(attended))
        y = self.dropout(self.expand(self.feed_forward_norm(x)).relu())
        return x + self.dropout(self.contract(y))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, HEAD_WIDTH)).transpose(1, 2)


class T5Stack(nn.Module):
    """A T5 encoder over given embeddings: [b, n, E] -> [b, n, E]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(T5Block(width, heads) for _ in range(LAYERS))
        self.relative_bias = nn.Embedding(_BUCKETS, heads)
        nn.init.normal_(self.relative_bias.weight, std=width**-0.5)
        self.final_norm = RmsNorm(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Encode without a mask."""
        n = x.shape[1]
        offsets = torch.arange(n)[None, :] - torch.arange(n)[:, None]  # key position - query position
        buckets = _relative_bucket(offsets).to(x.device)
        bias = self.relative_bias(buckets).permute(2, 0, 1)[None]  # [1, heads, n, n]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, bias)
        return self.dropout(self.final_norm(x))


def _relative_bucket(offsets: Tensor) -> Tensor:
    """T5's bidirectional buckets: half for each direction, exact up to 8, then logarithmic up to 128."""
    half = _BUCKETS // 2
    exact = half // 2
    distance = offsets.abs()
    far = exact + (
        torch.log(distance.clamp_min(1).float() / exact) / math.log(_MAX_DISTANCE / exact) * (half - exact)
    ).long().clamp_max(half - exact - 1)
    return (offsets > 0).long() * half + torch.where(distance < exact, distance, far)


class UnionHead(nn.Module):
    """(image, null text) -> target representation.

    `target` = L2(g * image + (1 - g) * text) with the gate g = g(image, text), both un-normalised projected features.
    12 heads for widths from 768, 8 below, as the public code has them.
    """

    def __init__(self, embedding_width: int) -> None:
        super().__init__()
        width = embedding_width
        self.embedding_width = width
        self.stack = T5Stack(width, heads=12 if width >= 768 else 8)
        self.gate = nn.Sequential(
            nn.Linear(2 * width, 4 * width),
            nn.Dropout(DROPOUT / 2),
            nn.Sigmoid(),
            nn.Linear(4 * width, width),
            nn.Dropout(DROPOUT / 2),
            nn.Sigmoid(),
            nn.Linear(width, 1),
        )

    def forward(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            image_features: [b, E], not normalised.
            text_features: [b, E], not normalised; as a rule the null text, repeated.

        Returns:
            target [b, E], L2-normalised, and the gate [b].
        """
        encoded = self.stack(torch.stack([image_features, text_features], dim=1))  # [b, 2, E]
        gate = self.gate(encoded.flatten(1))  # [b, 1]
        fused = gate * image_features + (1.0 - gate) * text_features
        return functional.normalize(fused, dim=-1), gate[:, 0]

"""ISA's symmetric setting: the foundation's own large visual encoder feeds the token learner, on both sides.

Nothing of it fits on a phone: it is what the asymmetric encoder is measured against.

Notation: b batch, S picture side, P patches, E joint-embedding width, L sentence tokens, D word-embedding width.
"""

from asymcir_common import Preprocessing
from torch import Tensor, nn

from asymcir_training.errors import FoundationError
from asymcir_training.foundation.model import Foundation
from asymcir_training.models.light_encoder import AdaptiveTokenLearner


class _Lent(tuple["Foundation", ...]):
    """A foundation that is not the encoder's own.

    torch takes no tuple for a part, and a copy of the encoder (the average of its weights) is lent the same one.
    """

    def __deepcopy__(self, memo: object) -> "_Lent":
        return self


class SymmetricEncoder(nn.Module):
    """The frozen visual encoder's patches -> token learner -> sentence tokens [b, L, D].

    Only the token learner is its own: the foundation is lent by `attach` and stays out of parameters and checkpoints.
    The patches are those of `Foundation.encode_patches`, projected into the joint space and not normalised, so that a
    cache of them trains it without the large encoder. That the projected patches feed the learner, rather than the
    encoder's own last features, is our choice: the paper's text could not be read.

    Args:
        patch_width: E of the foundation.
        sentence_length: L.
        word_width: D of the foundation.
        width: inner width d of the token learner.
        preprocessing: the foundation's.

    Raises:
        FoundationError: widths that do not fit.

    Source: ISA, arXiv:2403.01431, its symmetric variant.
    """

    def __init__(
        self,
        *,
        patch_width: int,
        sentence_length: int = 6,
        word_width: int,
        width: int = 512,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.config = {
            "patch_width": patch_width,
            "sentence_length": sentence_length,
            "word_width": word_width,
            "width": width,
            "preprocessing": preprocessing.to_json(),
        }
        self.preprocessing = preprocessing
        self.patch_width = patch_width
        self.sentence_length = sentence_length
        self.word_width = word_width
        self.token_learner = AdaptiveTokenLearner(
            patch_width, sentence_length=sentence_length, width=width, word_width=word_width
        )
        self._lent: tuple[Foundation, ...] = _Lent()

    @classmethod
    def of_foundation(cls, foundation: Foundation, *, sentence_length: int = 6, width: int = 512) -> "SymmetricEncoder":
        """Make one for a foundation, its output anchored to the word embeddings, the foundation attached."""
        encoder = cls(
            patch_width=foundation.embedding_width,
            sentence_length=sentence_length,
            word_width=foundation.word_width,
            width=width,
            preprocessing=foundation.preprocessing,
        )
        encoder.token_learner.anchor_to_words(foundation.word_embedding_table())
        return encoder.attach(foundation)

    def attach(self, foundation: Foundation) -> "SymmetricEncoder":
        """Lend the foundation whose patches `forward` computes; return self.

        Raises:
            FoundationError: one of other widths.
        """
        if (foundation.embedding_width, foundation.word_width) != (self.patch_width, self.word_width):
            raise FoundationError(
                f"expected the foundation of patches {self.patch_width} and words {self.word_width} wide that this "
                f"encoder was made for, got {foundation.embedding_width} and {foundation.word_width}"
            )
        self._lent = _Lent((foundation,))
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn pixels [b, 3, S, S], normalised as the foundation's, into sentence tokens [b, L, D].

        Raises:
            FoundationError: no foundation is attached, or its tower has no patches.
        """
        if not self._lent:
            raise FoundationError("attach the foundation before encoding pixels, or encode cached patches")
        return self.from_patches(self._lent[0].encode_patches(pixels))

    def from_patches(self, patches: Tensor) -> Tensor:
        """Turn patches [b, P, E], of any float type, into sentence tokens [b, L, D].

        Raises:
            FoundationError: patches of another width.
        """
        if patches.ndim != 3 or patches.shape[2] != self.patch_width:
            raise FoundationError(f"expected patches [b, P, {self.patch_width}], got {list(patches.shape)}")
        # One column of locations: the learner reads them as a set (a 1x1 convolution, attention without positions), so
        # the sides of the map do not matter.
        feature_map = patches.to(self.token_learner.word_means.dtype).transpose(1, 2).unsqueeze(3)  # [b, E, P, 1]
        tokens: Tensor = self.token_learner(feature_map)
        return tokens

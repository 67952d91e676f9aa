"""Target representations: what stands in a gallery for a picture, of each of UNION's three types.

Notation: b batch, E joint-embedding width.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from asymcir_training.errors import DataError
from asymcir_training.models.union_head import UnionHead

Target = Literal["union", "sum", "original"]
TARGETS = ("union", "sum", "original")


def represent_targets(
    image_features: Tensor, null_features: Tensor, target: str, head: UnionHead | None = None
) -> Tensor:
    """Make target representations, as the server makes them for a gallery.

    Args:
        image_features: [b, E], not normalised.
        null_features: [1, E] or [b, E], of the null text, not normalised.
        target: "original", L2(image); "sum", L2(image + null); "union", what the head makes of both. UNION's public
            code adds the two normalised and leaves the sum's length, under which a constant null text cannot change a
            ranking by inner product.
        head: for "union".

    Returns:
        [b, E], L2-normalised.

    Raises:
        DataError: another target, or "union" without a head.
    """
    if target == "original":
        return functional.normalize(image_features, dim=-1)
    null = null_features.expand_as(image_features)
    if target == "sum":
        return functional.normalize(image_features + null, dim=-1)
    if target != "union":
        raise DataError(f"expected a target of {', '.join(TARGETS)}, got {target!r}")
    if head is None:
        raise DataError("the target union needs a UNION head: pass one, or take sum or original")
    found: Tensor = head(image_features, null)[0]
    return found

"""How nearly an exported model answers as its original does: the comparison of two sets of vectors.

Notation: width, the length of one vector (a sentence token's D, an embedding's E).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from asymcir_edge.device.golden import token_cosines
from numpy.typing import NDArray

from asymcir_export.errors import ParityError


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """What a comparison has to meet.

    Attributes:
        cosine_min: least cosine that any one vector may have with its original; with a quantile above 0, the least
            that this quantile of the cosines may be.
        cosine_mean: least mean cosine.
        error_to_spread: most root mean square error, over the root mean square distance of the originals from their
            mean. What all outputs have in common can hide a fault from the cosine.
        quantile: of the cosines that `cosine_min` is held against: 0 for the least one, 0.05 to let one in twenty go.
    """

    cosine_min: float
    cosine_mean: float
    error_to_spread: float
    quantile: float = 0.0


def check_agreement(
    name: str,
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    *,
    thresholds: Thresholds,
    allowance: str,
    pictures: Sequence[str] = (),
    advice: str = "",
    centred: bool = False,
) -> dict[str, Any]:
    """Compare what an exported model gives with what its original gives.

    Args:
        name: of the output, for the message.
        expected: [..., width], from PyTorch; the first axis is that of the pictures or texts.
        found: the same, from the exported model.
        thresholds: to meet.
        allowance: what may differ by that much, for the message: "fp16 weights".
        pictures: names along the first axis, to name the worst one; none for texts.
        advice: what to do about a difference, for the message.
        centred: leave the error that all pictures share out of the error to spread; its share stands in the record,
            `offset_to_spread`.

    Returns:
        For the manifest: `vectors` compared, `max_abs_difference`, `cosine_min`, `cosine_p05` (5th percentile),
        `cosine_mean`, `error_to_spread`, their `thresholds` (of the cosine, its mean, the error), the `quantile` of the
        cosines that was judged, and with `pictures` the `worst` one (`picture`, `cosine`).

    Raises:
        ParityError: another shape, a value that is not finite, a cosine below its threshold, or an error above its own.
    """
    if expected.shape != found.shape:
        raise ParityError(f"{name}: the exported model gives {list(found.shape)}, the original {list(expected.shape)}")
    a = expected.reshape(-1, expected.shape[-1]).astype(np.float64)
    b = found.reshape(-1, found.shape[-1]).astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ParityError(f"{name}: expected finite values, got NaN or infinity")
    cosines = token_cosines(a, b)  # [vectors]
    spread = float(np.sqrt(np.mean((expected - expected.mean(axis=0)) ** 2)))
    difference = found.astype(np.float64) - expected
    offset = difference.mean(axis=0) if centred else np.zeros(())
    error = float(np.sqrt(np.mean((difference - offset) ** 2)))
    judged = float(np.quantile(cosines, thresholds.quantile))
    record: dict[str, Any] = {
        "vectors": len(a),
        "max_abs_difference": float(np.abs(a - b).max()),
        "cosine_min": float(cosines.min()),
        "cosine_p05": float(np.quantile(cosines, 0.05)),
        "cosine_mean": float(cosines.mean()),
        "error_to_spread": error / max(spread, 1e-12),
        "thresholds": [thresholds.cosine_min, thresholds.cosine_mean, thresholds.error_to_spread],
        "quantile": thresholds.quantile,
    }
    if centred:
        record["offset_to_spread"] = float(np.sqrt(np.mean(offset**2))) / max(spread, 1e-12)
    worst = ""
    if pictures:
        picture = pictures[int(cosines.argmin()) * len(pictures) // len(cosines)]
        record["worst"] = {"picture": picture, "cosine": record["cosine_min"]}
        worst = f", worst picture {picture} (cosine {record['cosine_min']:.5f})"
    if (
        judged < thresholds.cosine_min
        or record["cosine_mean"] < thresholds.cosine_mean
        or record["error_to_spread"] > thresholds.error_to_spread
    ):
        what = f"{100 * thresholds.quantile:g}th percentile" if thresholds.quantile else "min"
        raise ParityError(
            f"{name}: the exported model differs from its original by more than {allowance} may: cosine {what} "
            f"{judged:.5f} (at least {thresholds.cosine_min}), mean {record['cosine_mean']:.5f} (at least "
            f"{thresholds.cosine_mean}), error to spread {record['error_to_spread']:.3f} (at most "
            f"{thresholds.error_to_spread}), max abs difference {record['max_abs_difference']:.3g} over {len(a)} "
            f"vectors{worst}{'; ' if advice else ''}{advice}"
        )
    return record

"""Target representations: what stands in a gallery for a picture.

`union` is the UNION head's L2norm(g * image + (1 - g) * null text); `original` = L2norm(image) and `sum` =
L2norm(image + null text) need no head, and stay selectable beside it, so that the gain can be measured. All work on
un-normalised features.

Source: UNION, arXiv:2511.22253.
"""

import numpy as np
from asymcir_common import BundleError
from numpy.typing import NDArray

from asymcir_server.encode.bundle import TARGETS, ServerBundle
from asymcir_server.encode.sessions import run_outputs
from asymcir_server.encode.text_encoder import TextEncoder
from asymcir_server.encode.vectors import l2_normalize


class TargetEncoder:
    """Turns image features into target representations with one bundle. Safe to share between threads."""

    def __init__(self, bundle: ServerBundle, text_encoder: TextEncoder | None = None) -> None:
        """Prepare; the text tower is opened only for the targets that need the null text.

        Args:
            bundle: the bundle.
            text_encoder: one that is open already.
        """
        self._bundle = bundle
        self._text_encoder = text_encoder

    def compute_targets(self, image_features: NDArray[np.float32], target: str | None = None) -> NDArray[np.float32]:
        """Compute target representations.

        Args:
            image_features: [b, E], not normalised.
            target: "union", "original" or "sum"; None: the bundle's default.

        Returns:
            [b, E], L2-normalised; a row without a direction comes back as zeros.

        Raises:
            BundleError: the bundle cannot make that target, or the head fails or gives another shape.
        """
        return self.compute_gated(image_features, target)[0]

    def compute_gated(
        self, image_features: NDArray[np.float32], target: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Compute target representations as `compute_targets` does, and UNION's gates, [b]; None for other targets."""
        target = self._bundle.default_target if target is None else target
        self._bundle.target_space(target)
        if target == "original":
            return l2_normalize(image_features), None
        null = np.broadcast_to(self._null_features(), image_features.shape)  # [b, E]
        if target == "sum":
            return l2_normalize(image_features + null), None
        if target != "union":
            raise BundleError(
                f"expected a target of {', '.join(TARGETS)}, got {target!r}: this bundle needs a newer asymcir"
            )
        feed = {"image_features": image_features, "text_features": np.ascontiguousarray(null)}
        session = self._bundle.union_session()
        path = self._bundle.folder / (self._bundle.union_file or "")
        shape = (len(image_features), image_features.shape[1])
        given = {output.name for output in session.get_outputs()}  # a head exported by other means may lack the gate
        outputs: dict[str, tuple[int, ...]] = {"target": shape}
        if "gate" in given:
            outputs["gate"] = shape[:1]
        found = run_outputs(session, path, outputs, feed)
        return l2_normalize(found["target"]), found.get("gate")

    def _null_features(self) -> NDArray[np.float32]:
        if self._text_encoder is None:
            self._text_encoder = TextEncoder(self._bundle)
        return self._text_encoder.null_features

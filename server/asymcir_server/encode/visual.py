"""The visual encoder: preprocessed pictures in, image features out."""

import numpy as np
from asymcir_common import ImageError
from numpy.typing import NDArray

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.sessions import run_session


class VisualEncoder:
    """Encodes gallery pictures with one bundle's visual tower. Safe to share between threads.

    Attributes:
        preprocessing: what `asymcir_protos.preprocess` must be called with before.
        embedding_width: E.
    """

    def __init__(self, bundle: ServerBundle) -> None:
        """Open the visual tower.

        Raises:
            BundleError: it cannot be opened or does not fit the manifest.
        """
        self.preprocessing = bundle.preprocessing
        self.embedding_width = bundle.text.embedding_width
        self._path = bundle.folder / bundle.visual_file
        self._session = bundle.visual_session()

    def encode_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode a batch of preprocessed pictures.

        Args:
            pixels: [b, S, S, 3], uint8, RGB; normalisation is in the graph.

        Returns:
            [b, E], image_features, not normalised.

        Raises:
            ImageError: pixels is not of that shape.
            BundleError: the graph fails, or does not give [b, E].
        """
        size = self.preprocessing.size
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3) or len(pixels) == 0:
            raise ImageError(
                f"expected pixels [b, {size}, {size}, 3] uint8, got {list(pixels.shape)} {pixels.dtype}: "
                "preprocess first"
            )
        shape = (len(pixels), self.embedding_width)
        return run_session(self._session, self._path, "image_features", {"pixels": pixels}, shape)

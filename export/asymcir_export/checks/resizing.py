"""The resize of a device graph against Pillow's, in grey levels: what the network is given, whatever it makes of it.

Tokens do not tell a wrong resize from a young network: see RESIZED_THRESHOLDS.

Notation: S side of the square that the network sees, L sentence tokens, D word-embedding width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from asymcir_common import Preprocessing, preprocess
from numpy.typing import NDArray

from asymcir_export.checks.agreement import Thresholds
from asymcir_export.errors import ParityError
from asymcir_export.graphs.device_graph import INPUT_NAME, keep_preprocessing

MAX_GREY_DIFFERENCE = 0.5
"""Most mean difference in grey levels, of 255, that any one picture may have between the graph's resize and Pillow's.

Measured on emoji at sizes from 72 x 72 to 540 x 960, bilinear: 0.002 at most, and 0.13 where Pillow 13 resizes the
height first (0.25 for noise). Wrong ones, on average: not antialiased 0.65 to 4.8, bicubic instead of bilinear 0.87 to
1.3, moved by a pixel 5.7, squashed instead of cropped 30.
"""

RESIZED_THRESHOLDS = Thresholds(cosine_min=0.95, cosine_mean=0.97, error_to_spread=0.75, quantile=0.05)
"""What the tokens of resized pictures have to meet, beside the pixels.

They are judged by the 5th percentile, and with a wide margin. Measured where rounding alone differs (one grey level in
13% of the values of 540 x 960 pictures), as 5th percentile, mean and error to spread: the demo's EfficientNet-Lite0
0.9998, 0.9999, 0.02; after 28 steps of training 1.0000, 1.0000, 0.43; before the first 0.979, 0.985, 0.48. That the
network is right is said by prepared pictures, whose pixels are the same, with strict thresholds.
"""


def check_resize(
    encoder: Path, spec: Preprocessing, pictures: Sequence[NDArray[np.uint8]], names: Sequence[str]
) -> dict[str, Any]:
    """Compare the pixels that a device graph gives its network with those of `preprocess`.

    Args:
        encoder: an ONNX file whose preprocessing is as `join_preprocessing` made it.
        spec: what it was made with.
        pictures: [h, w, 3] uint8 each, any size.
        names: of the pictures, to name the worst one.

    Returns:
        For the manifest, in grey levels: `grey_difference_mean` over all pictures, `grey_difference_worst`, the mean
        of the worst one, its name `worst_resize`, and `grey_difference_allowed`.

    Raises:
        ParityError: the worst one differs by more than MAX_GREY_DIFFERENCE.
    """
    front = keep_preprocessing(onnx.load(encoder), spec.size)
    session = onnxruntime.InferenceSession(front.SerializeToString(), providers=["CPUExecutionProvider"])
    mean, std = np.asarray(spec.mean), np.asarray(spec.std)
    differences = []
    for picture in pictures:
        normalised = session.run(None, {INPUT_NAME: picture})[0][0].transpose(1, 2, 0)  # [S, S, 3]
        differences.append(float(np.abs((normalised * std + mean) * 255.0 - preprocess(picture, spec)).mean()))
    worst = int(np.argmax(differences))
    if not differences[worst] <= MAX_GREY_DIFFERENCE:
        height, width = pictures[worst].shape[:2]
        raise ParityError(
            f"the graph resizes otherwise than Pillow: {names[worst]}, {width}x{height}, differs by "
            f"{differences[worst]:.2f} grey levels on average, at most {MAX_GREY_DIFFERENCE} are allowed"
        )
    return {
        "grey_difference_mean": float(np.mean(differences)),
        "grey_difference_worst": differences[worst],
        "worst_resize": names[worst],
        "grey_difference_allowed": MAX_GREY_DIFFERENCE,
    }

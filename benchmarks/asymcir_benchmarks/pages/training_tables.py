"""Lay out for the pages what the training figures make of a million pictures."""

from collections.abc import Mapping
from typing import Any

from asymcir_benchmarks.pages.markdown import describe_source, make_table

_MILLION = 1_000_000
_RATES = {"teacher cache, pictures/s": "teacher cache", "cached distillation, pictures/s": "distillation, an epoch"}
"""Figure -> the stage that it is the rate of."""


def lay_out_training_millions(record: Mapping[str, Any]) -> str:
    """Lay out what a million pictures take at the measured rates, and on the disk."""
    rows = [["stage", "a million pictures"]]
    for key, stage in _RATES.items():
        rows.append([f"{stage}, hours on this machine", f"{_MILLION / record['figures'][key] / 3600:,.0f}"])
    # float32 embeddings [E] and float16 patches [P, E] of ViT-L/14: E 768, P 256.
    rows.append(["teacher cache, embeddings of ViT-L/14, GB", f"{_MILLION * 4 * 768 / 1e9:.1f}"])
    rows.append(
        [
            "teacher cache, patches of ViT-L/14 besides (late LAR, symmetric), GB",
            f"{_MILLION * 2 * 256 * 768 / 1e9:,.0f}",
        ]
    )
    return make_table(rows) + f"\n\n{describe_source(record)}"

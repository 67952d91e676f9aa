"""The small table of the README: a few figures of several result files, each beside what it has to be read against."""

from collections.abc import Mapping
from typing import Any

from asymcir_benchmarks.device.timing import LARGE, PEER
from asymcir_benchmarks.pages.device_tables import DEFAULT_BACKBONE
from asymcir_benchmarks.pages.markdown import make_table

SUMMARY_RESULTS = ("demo.json", "emojicir.json", "device.json", "server-sizes.json")
"""What `lay_out_summary` reads, in its order."""
_NOTE = (
    f"Encoder: {DEFAULT_BACKBONE}, int8; times and sizes with random weights. Demo: share of composed queries, 95% "
    "interval; the alternative adds the vectors of the server's large picture encoder and text encoder."
)


def lay_out_summary(
    demo: Mapping[str, Any], emojicir: Mapping[str, Any], device: Mapping[str, Any], server: Mapping[str, Any]
) -> str:
    """A row for each figure: what was measured, the value, and the value of the alternative.

    Raises:
        KeyError: a result lacks a figure.
    """
    found, timed = emojicir["figures"], device["figures"]
    text_ms = server["figures"]["ViT-L-14, text, int8, ms"]
    large_ms, encoder_ms = timed[f"{LARGE}, fp32, ms"], timed[f"{DEFAULT_BACKBONE}, int8, ms"]
    peer_ms = min(timed[f"{PEER}, {precision}, ms"] for precision in ("fp32", "int8"))
    rows = [
        ["", "asymcir", "alternative"],
        [
            "encode a picture, one x86 thread",
            f"{encoder_ms:.1f} ms",
            f"{peer_ms:.1f} ms (MobileCLIP-S0), {large_ms:,.0f} ms (ViT-L/14)",
        ],
        [
            "size of the encoder file",
            f"{timed[f'{DEFAULT_BACKBONE}, int8, MB']:.1f} MB",
            f"{server['figures']['ViT-L-14, visual, fp32, MB']:,.0f} MB (ViT-L/14, fp32)",
        ],
        ["a query on the wire", f"{demo['figures']['query on the wire, bytes']:,.0f} bytes", "the photo"],
        ["encode a query on the server, one x86 thread", f"{text_ms:.0f} ms (ViT-L/14, int8)", "-"],
    ]
    composed, added = ("test triplets, composed, all, R@", "test triplets, picture + text, all, R@")
    for k in (10, 1):
        ours = f"{found[f'{composed}{k}']:.3f}" + (_interval(found, f"{composed}{k}") if k == 10 else "")
        other = f"{found[f'{added}{k}']:.3f}" + (_interval(found, f"{added}{k}") if k == 10 else "")
        rows.append([f"demo: right answer in the first {k}" if k > 1 else "demo: right answer first", ours, other])
    machines = dict.fromkeys(f"{record['date']}, {record['machine']}" for record in (demo, emojicir, device, server))
    return make_table(rows) + f"\n\n{_NOTE} {'; '.join(machines)}."


def _interval(figures: Mapping[str, float], key: str) -> str:
    return f" ({figures[f'{key} low']:.3f} to {figures[f'{key} high']:.3f})"

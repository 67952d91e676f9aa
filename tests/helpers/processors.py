"""What the processor at hand can do, for tests whose bounds depend on it."""

from pathlib import Path

import pytest


def sums_int8_exactly() -> bool:
    """Whether int8 products are summed in 32 bits.

    x86 processors without VNNI sum two in 16 bits and cut the result, which spoils int8 of a full range.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True
    return "vendor_id" not in flags or "avx512_vnni" in flags or "avx_vnni" in flags


exact_int8 = pytest.mark.skipif(not sums_int8_exactly(), reason="this processor has no VNNI: it cuts sums of int8")

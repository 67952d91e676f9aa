"""Errors of the benchmarks package.

AsymcirError
└── BenchmarkError           a data set, result or argument that cannot be measured with
"""

from asymcir_common import AsymcirError


class BenchmarkError(AsymcirError):
    """Something cannot be measured as asked."""

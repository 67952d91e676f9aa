"""Errors of the demo.

AsymcirError
└── DemoError                assets that are not there, or a server that does not come up
"""

from asymcir_common import AsymcirError


class DemoError(AsymcirError):
    """The demo cannot run as asked."""

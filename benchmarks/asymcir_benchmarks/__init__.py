"""Measuring: retrieval metrics, EmojiCIR triplets, and their evaluation through the exported bundles.

Names are imported when they are first used, so that the command's help works where an extra is missing; `__init__.pyi`
lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

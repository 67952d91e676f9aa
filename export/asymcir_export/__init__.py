"""Build time: trained models to bundles of ONNX and Core ML files, each compared with its original.

Names are imported when they are first used, so that the command's help does not wait for torch; `__init__.pyi`
lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

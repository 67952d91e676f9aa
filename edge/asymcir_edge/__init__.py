"""The device side: a picture to sentence tokens, sentence tokens to a server's hits, and the `asymcir` command.

Names are imported when they are first used, so that the command's help waits neither for ONNX Runtime nor for gRPC;
`__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The server: the frozen text encoder, galleries, and the gRPC service. Runs on ONNX Runtime, without torch.

Names are imported when they are first used: the `asymcir` command reads `commands` on every start, also
where the server's libraries are not installed; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

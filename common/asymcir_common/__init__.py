"""What device, server and training must do alike: manifests and digests, decoding and preparing pictures, errors.

It imports nothing of ours, and depends on numpy and Pillow only. Names are imported when they are first used, so that
the command's help and the completion of its words wait for neither; `__init__.pyi` lists them. Its part `places`, which
is imported by itself, reads folders, archives and lists of pictures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

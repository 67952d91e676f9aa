"""How a bundle comes to its place: written to a temporary folder beside it, and renamed when all is well."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from onnx import ModelProto

from asymcir_export.errors import ExportError
from asymcir_export.graphs.weight_storage import WeightStorage, store_lean
from asymcir_export.graphs.writer import write_onnx

Sources = Sequence[Mapping[str, str]]
"""Where weights came from: `name`, `licence` and `url` each."""
_LOG = logging.getLogger(__name__)


def refuse_existing(out: Path, *, force: bool) -> None:
    """Refuse a place that is taken.

    Raises:
        ExportError: something is there and is not to be replaced, or is no folder.
    """
    if out.exists() and not force:
        raise ExportError(f"{out} exists: choose another --out, or pass --force to replace it")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file: choose another --out")


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes its place when the block ends well, and vanishes otherwise."""
    refuse_existing(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        folder.chmod(0o755)
        yield folder
        if out.exists():
            old = folder.with_suffix(".old")
            out.rename(old)
            folder.rename(out)
            shutil.rmtree(old)
        else:
            folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_graph(model: ModelProto, path: Path, storage: WeightStorage) -> None:
    """Write a graph with its weights stored as asked for, and log its size."""
    write_onnx(store_lean(model, storage), path)
    size_bytes = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
    _LOG.info("wrote %s, %s, %.1f MB", path.name, storage, size_bytes / 1e6)

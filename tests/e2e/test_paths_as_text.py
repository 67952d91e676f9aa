"""Public functions take a path as a text, too."""

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import read_image, read_manifest
from asymcir_common.manifest import DEVICE_BUNDLE
from asymcir_edge import Credentials, DeviceBundle, QueryEncoder
from asymcir_server import BuildConfig, Gallery, IndexConfig, ServerBundle, build_gallery, compact_gallery, edit_gallery
from asymcir_server.serve.security import KeyStore, TlsConfig
from asymcir_server.serve.security.keys import create_key
from PIL import Image
from tiny_device_bundle import write_device_bundle
from tiny_server_bundle import TinyModel, write_tiny_bundle

PACKAGES = ["common", "edge", "server", "training", "export"]
RESULTS = {"BuildReport", "DeviceBundle", "Editor", "LoopConfig", "ServerBundle", "TeacherCache"}
"""Made by functions of ours, and LoopConfig, which makes a Path of a text."""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_function_takes_a_path_only(package: str) -> None:
    module = importlib.import_module(f"asymcir_{package}")
    strict = []
    for name in module.__all__:
        found = getattr(module, name)
        if not callable(found) or name in RESULTS or not getattr(found, "__module__", "").startswith("asymcir"):
            continue
        functions = {name: found}
        if inspect.isclass(found):
            methods = (key for key in vars(found) if not key.startswith("_"))
            functions |= {f"{name}.{key}": getattr(found, key) for key in methods if callable(getattr(found, key))}
        for label, function in functions.items():
            try:
                parameters = inspect.signature(function).parameters.values()
            except ValueError:  # a type of the interpreter's
                continue
            strict += [
                f"{label}({one.name})"
                for one in parameters
                if "Path" in str(one.annotation) and "str" not in str(one.annotation)
                and "PathReader" not in str(one.annotation)
            ]  # fmt: skip
    assert strict == []


def test_from_pictures_to_an_open_gallery(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(
            tmp_path / "pictures" / f"{number}.png"
        )
    server = ServerBundle.load(str(write_tiny_bundle(tmp_path / "server", TinyModel())), threads=1)
    queries = tmp_path / "queries.npy"
    np.save(queries, np.eye(server.text.embedding_width, dtype=np.float32))
    config = BuildConfig(index=IndexConfig(recall_queries=str(queries)))
    out = str(tmp_path / "gallery")
    build_gallery(str(tmp_path / "pictures"), server, out, config=config)
    with edit_gallery(out, "test") as editor:
        editor.remove(["1.png"])
    assert compact_gallery(out).size == 2
    gallery = Gallery.open(out)
    assert gallery.size == 2 and gallery.folder == Path(out)
    gallery.close()


def test_on_the_device_and_for_keys(tmp_path: Path) -> None:
    folder = str(write_device_bundle(tmp_path / "device"))
    Image.new("RGB", (5, 5), "red").save(tmp_path / "a.png")
    assert read_manifest(folder, format=DEVICE_BUNDLE).format == DEVICE_BUNDLE
    assert read_image(str(tmp_path / "a.png")).shape == (5, 5, 3)
    encoder = QueryEncoder(DeviceBundle.load(folder))
    assert encoder.encode_file(str(tmp_path / "a.png")).ndim == 2
    keys = str(tmp_path / "keys.json")
    key = create_key(keys, name="a", role="search")
    assert KeyStore(keys).find(key) is not None
    assert Credentials(ca=keys).channel_credentials() is not None
    assert TlsConfig(certificate=keys, private_key=keys).stamp()

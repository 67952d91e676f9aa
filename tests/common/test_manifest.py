import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from asymcir_common import BundleError, read_manifest, write_manifest
from asymcir_common.files import write_atomically
from asymcir_common.manifest import DEVICE_BUNDLE, GALLERY, MANIFEST_NAME, SERVER_BUNDLE


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "nested").mkdir(parents=True)
    (folder / "encoder.onnx").write_bytes(bytes(range(256)) * 9)
    (folder / "nested" / MANIFEST_NAME).write_text("{}")  # an .mlpackage has one too
    write_manifest(
        folder,
        format=DEVICE_BUNDLE,
        properties={"word_width": 8, "name": "日本語"},
        sources=[{"name": "x", "licence": "MIT"}],
        parity={"cosine_min": 0.9999},
    )
    return folder


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _fails(folder: Path, pattern: str) -> None:
    with pytest.raises(BundleError, match=pattern) as caught:
        read_manifest(folder, format=DEVICE_BUNDLE)
    assert "\n" not in str(caught.value)


def test_round_trip(bundle: Path) -> None:
    manifest = read_manifest(bundle, format=DEVICE_BUNDLE)
    assert manifest.properties == {"word_width": 8, "name": "日本語"}
    assert set(manifest.files) == {"encoder.onnx", f"nested/{MANIFEST_NAME}"}
    assert manifest.files["encoder.onnx"].size_bytes == 2304
    assert manifest.parity == {"cosine_min": 0.9999}
    assert manifest.require("word_width") == 8
    with pytest.raises(BundleError, match="'word_space'"):
        manifest.require("word_space")


@pytest.mark.parametrize("position", [0, 1000, 2303])
def test_changed_byte(bundle: Path, position: int) -> None:
    data = bytearray((bundle / "encoder.onnx").read_bytes())
    data[position] ^= 1
    (bundle / "encoder.onnx").write_bytes(data)
    _fails(bundle, "not the file its manifest describes")


def test_changed_nested_manifest(bundle: Path) -> None:
    (bundle / "nested" / MANIFEST_NAME).write_text("[]")
    _fails(bundle, "not the file its manifest describes")


def test_cut_file(bundle: Path) -> None:
    (bundle / "encoder.onnx").write_bytes(b"")
    _fails(bundle, "got 0 bytes")


def test_missing_file(bundle: Path) -> None:
    (bundle / "encoder.onnx").unlink()
    _fails(bundle, "lacks encoder.onnx")


def test_missing_manifest(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).unlink()
    _fails(bundle, "interrupted")


def test_missing_folder(tmp_path: Path) -> None:
    _fails(tmp_path / "nowhere", "found none")


def test_file_instead_of_folder(bundle: Path) -> None:
    _fails(bundle / "encoder.onnx", "found none")


def test_other_format(bundle: Path) -> None:
    _edit(bundle, format=GALLERY)
    _fails(bundle, "got an asymcir.gallery")


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_other_version(bundle: Path, version: object) -> None:
    _edit(bundle, version=version)
    _fails(bundle, "format version")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"text"', "[" * 100_000, '{"format": "asymcir.device-bundle"}', "\ufeff{}"],
    ids=["empty", "cut", "list", "null", "number", "text", "deep", "keys", "bom"],
)
def test_damaged_json(bundle: Path, text: str) -> None:
    (bundle / MANIFEST_NAME).write_text(text)
    _fails(bundle, "is damaged")


def test_not_utf8(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).write_bytes(b'{"format": "\xff\xfe"}')
    _fails(bundle, "is damaged")


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": {"encoder.onnx": "digest"}},
        {"files": {"encoder.onnx": {"sha256": "ab"}}},
        {"files": {"encoder.onnx": {"sha256": 5, "size_bytes": 2304}}},
        {"files": {"encoder.onnx": {"sha256": "ab", "size_bytes": "2304"}}},
        {"files": {"encoder.onnx": {"sha256": "ab", "size_bytes": 1, "more": 1}}},
        {"properties": []},
        {"properties": None},
    ],
)
def test_damaged_record(bundle: Path, changes: dict[str, Any]) -> None:
    _edit(bundle, **changes)
    _fails(bundle, "is damaged")


@pytest.mark.parametrize("name", ["../outside", "nested/../../outside", "/etc/hostname"])
def test_path_outside(bundle: Path, name: str) -> None:
    (bundle.parent / "outside").write_text("")
    _edit(bundle, files={name: {"sha256": "e3b0", "size_bytes": 0}})
    _fails(bundle, "outside the bundle")


@pytest.mark.parametrize("name", ["", ".", "nested", "a\0b"])
def test_name_of_no_file(bundle: Path, name: str) -> None:
    _edit(bundle, files={name: {"sha256": "e3b0", "size_bytes": 0}})
    _fails(bundle, "lacks")


def test_writing_atomically_leaves_the_old_content_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_a_clone_with_other_line_endings_is_the_same(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "tokenizer.json").write_bytes(b'{\n  "a": 1\n}\n')
    write_manifest(origin, format=SERVER_BUNDLE, properties={})
    shutil.copy(root / ".gitattributes", origin / ".gitattributes")
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.autocrlf=true")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "a")):
        subprocess.run([*git, *command], cwd=origin, check=True)
    subprocess.run([*git, "clone", "-q", origin, tmp_path / "clone"], check=True)
    read_manifest(tmp_path / "clone", format=SERVER_BUNDLE)

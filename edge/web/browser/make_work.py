"""Writes what the browser tests need into a folder: a small gallery, pictures to ask with, and damaged bundles.

The gallery's pictures are the demo's; their metadata gets keys of every type that can be filtered by.
"""

import json
import shutil
import sys
import zipfile
from pathlib import Path

from asymcir_server import BuildConfig, ServerBundle, build_gallery
from PIL import Image

ASSETS = Path("demo/assets")
WANTED = ("cat", "heart", "circle", "cloud", "apple", "dog", "square", "star", "moon", "flag-f")
MOST = 150


def main(work: Path) -> None:
    """Write everything below `work`."""
    entries = [json.loads(line) for line in (ASSETS / "gallery/gallery.jsonl").read_text().splitlines()]
    kept = [entry for entry in entries if any(word in json.dumps(entry) for word in WANTED)][:MOST]
    for number, entry in enumerate(kept):
        entry["path"] = str((ASSETS / "gallery" / entry["path"]).resolve())
        entry |= {"number": number, "even": number % 2 == 0}
    listed = work / "gallery.jsonl"
    listed.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    build_gallery(
        listed, ServerBundle.load(ASSETS / "server"), work / "gallery", config=BuildConfig(thumbnail_side=128)
    )
    (work / "ids.json").write_text(json.dumps([entry.get("id", "") for entry in kept]))
    with zipfile.ZipFile(ASSETS / "queries.zip") as archive:
        for name in ("grinning-cat.webp", "red-heart.webp"):
            if name in archive.namelist():
                (work / name).write_bytes(archive.read(name))
    wide = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    wide.paste((200, 30, 30, 255), (60, 40, 240, 160))
    wide.save(work / "transparent.png")
    wide.convert("RGB").save(work / "photo.jpg", quality=95)
    Image.new("RGB", (1, 1), (200, 30, 30)).save(work / "one.png")
    Image.new("RGB", (600, 10), (200, 30, 30)).save(work / "thin.png")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(work / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    corrupted = work / "corrupted"
    shutil.copytree(ASSETS / "device", corrupted)
    encoder = corrupted / "encoder.onnx"
    data = bytearray(encoder.read_bytes())
    data[len(data) // 2] ^= 255
    encoder.write_bytes(data)
    other = work / "other-space"
    shutil.copytree(ASSETS / "device", other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["properties"]["word_space"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

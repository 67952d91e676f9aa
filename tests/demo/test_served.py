"""The foundation of a server bundle, read back from it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_demo.errors import DemoError
from asymcir_demo.recipe.served import TRUNK, write_served_foundation
from asymcir_export import export_server_bundle
from asymcir_server import ServerBundle, VisualEncoder
from asymcir_training import load_foundation
from asymcir_training.foundation.creation import save_weights, write_initial_foundation
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_foundations import calibrate, copy_sentence_encoder, write_bert

SIZE = 64


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    return copy_sentence_encoder(write_bert(root / "bert"), root / "encoder")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A bundle as the demo's is: weights stored lean."""
    root = tmp_path_factory.mktemp("served")
    write_initial_foundation(root / "foundation", text=text, trunk=TRUNK, size=SIZE)
    foundation = load_foundation(f"local-dir:{root / 'foundation'}")
    calibrate(foundation.model.visual, SIZE)
    save_weights(foundation.model.eval(), root / "foundation")
    export_server_bundle(foundation, None, root / "server", pictures=_pictures(root), storage="fp16")
    return root / "server"


def _pictures(root: Path) -> Path:
    folder = root / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(folder / f"{number}.png")
    return folder


def test_its_pictures_come_out_as_the_bundle_gives_them(server: Path, text: Path, tmp_path: Path) -> None:
    write_served_foundation(server, tmp_path / "read", text=text)
    foundation = load_foundation(f"local-dir:{tmp_path / 'read'}")
    bundle = ServerBundle.load(server)
    assert foundation.word_space() == bundle.word_space
    pixels = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    expected = VisualEncoder(bundle).encode_image(pixels)
    with torch.no_grad():
        found = foundation.encode_pixels(foundation.normalise_pixels(torch.from_numpy(pixels))).numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_another_text_tower_is_refused(server: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in text.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(other / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 0.1
    save_file(weights, other / "model.safetensors")
    with pytest.raises(DemoError, match="its words do not have that space"):
        write_served_foundation(server, tmp_path / "read", text=other)

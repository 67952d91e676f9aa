"""The golden part that the export writes, and that hard pictures come out of the device's graph as out of training."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import preprocess, read_image, write_manifest
from asymcir_common.manifest import DEVICE_BUNDLE
from asymcir_common.places import find_pictures
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_edge.device.golden import compare_tokens, read_golden, token_cosines
from asymcir_edge.device.selftest import run_selftest
from asymcir_export import ExportError, ParityError, export_device_bundle
from asymcir_export.bundles.golden import GOLDEN_SOURCES, MAX_SOURCE_BYTES, write_golden
from asymcir_export.checks.parity import MIN_COSINE
from asymcir_training import LightEncoder, normalise_pixels
from numpy.typing import NDArray
from PIL import Image

Reader = Callable[[Path], NDArray[np.uint8]]
_HARD = {
    "square.webp",
    "not_square.webp",
    "turned_by_exif.jpg",
    "grey.png",
    "palette_with_alpha.png",
    "grey_16_bit.png",
    "one_pixel.png",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, light_encoder: LightEncoder, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("golden") / "bundle"
    export_device_bundle(light_encoder, out, word_space="a", foundation="f", pictures=pictures, variants=())
    return out


def sign(folder: Path, **properties: object) -> Path:
    """Write the manifest anew, as if the bundle had been exported as it lies there."""
    record = json.loads((folder / "manifest.json").read_text())["properties"] | properties
    write_manifest(folder, format=DEVICE_BUNDLE, properties=record)
    return folder


def encode_in_torch(encoder: LightEncoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The training reference: `preprocess` and the PyTorch encoder; [L, D]."""
    spec = encoder.preprocessing
    with torch.inference_mode():
        return encoder(normalise_pixels(torch.tensor(preprocess(pixels, spec)[None]), spec))[0].numpy()


def test_a_new_bundle_passes_its_own_test(bundle: Path) -> None:
    report = run_selftest(DeviceBundle.load(bundle), repeats=2)
    assert report.passed
    (encoder,) = report.encoders
    names = {verdict.picture for verdict in encoder.pictures}
    assert names > _HARD and len(names) == len(_HARD) + GOLDEN_SOURCES
    assert encoder.thresholds.cosine_min == MIN_COSINE["fp32"] == 0.999
    measured = DeviceBundle.load(bundle).manifest.properties["golden"]["measured"]["fp32"]
    assert encoder.cosine_min == pytest.approx(measured["cosine_min"], abs=1e-5)


def test_every_hard_picture_agrees_with_the_training_reference(bundle: Path, light_encoder: LightEncoder) -> None:
    loaded = DeviceBundle.load(bundle)
    golden, query_encoder = read_golden(loaded), QueryEncoder(loaded)
    shapes = {}
    for picture, tokens in zip(golden.pictures, golden.tokens, strict=True):
        pixels = read_image(picture.path)
        np.testing.assert_allclose(tokens, encode_in_torch(light_encoder, pixels), atol=1e-4)
        assert token_cosines(tokens, query_encoder.encode_image(pixels)).min() > 0.999, picture.name
        shapes[picture.name] = (picture.width, picture.height)
    assert shapes["square.webp"] == (64, 64) and golden.pictures[golden.latency_picture].name == "square.webp"
    assert shapes["turned_by_exif.jpg"] == (192, 128)  # upright; more than the network sees, so it is shrunk
    assert shapes["not_square.webp"] == (32, 64) and shapes["one_pixel.png"] == (1, 1)


def test_the_hard_pictures_are_what_their_names_say(bundle: Path) -> None:
    folder = bundle / "golden" / "pictures"
    with Image.open(folder / "turned_by_exif.jpg") as image:
        assert (image.format, image.size, image.getexif()[0x0112]) == ("JPEG", (128, 192), 6)
    with Image.open(folder / "grey.png") as image:
        assert image.mode == "L"
    with Image.open(folder / "palette_with_alpha.png") as image:
        assert image.mode == "P"
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        assert alpha.min() < 50 and alpha.max() > 200
    with Image.open(folder / "grey_16_bit.png") as image:
        assert image.mode.startswith("I;16") and np.asarray(image).max() > 255


def _ignore_exif(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(read_image(path) if image.getexif().get(0x0112, 1) == 1 else image.convert("RGB"))


def _drop_alpha(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image.convert("RGBA").convert("RGB") if image.mode == "P" else read_image(path))


def _clip_16_bit(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        if not image.mode.startswith("I"):
            return read_image(path)
        return np.clip(np.asarray(image), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def _squash(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(read_image(path)).resize((64, 64), Image.Resampling.BILINEAR))


def _shrink_without_antialias(path: Path) -> NDArray[np.uint8]:
    pixels = read_image(path)
    return pixels if min(pixels.shape[:2]) <= 64 else np.ascontiguousarray(pixels[::2, ::2])


def _swap_red_and_blue(path: Path) -> NDArray[np.uint8]:
    return np.ascontiguousarray(read_image(path)[..., ::-1])


@pytest.mark.parametrize(
    ("fault", "picture"),
    [
        (_ignore_exif, "turned_by_exif.jpg"),
        (_drop_alpha, "palette_with_alpha.png"),
        (_clip_16_bit, "grey_16_bit.png"),
        (_squash, "not_square.webp"),
        (_shrink_without_antialias, "turned_by_exif.jpg"),
        (_swap_red_and_blue, "picture_0.png"),
    ],
)
def test_the_golden_pictures_find_faults_of_an_app(bundle: Path, fault: Reader, picture: str) -> None:
    """What apps did wrong when they prepared pictures themselves: each shows in the picture that was made for it."""
    loaded = DeviceBundle.load(bundle)
    golden, query_encoder = read_golden(loaded), QueryEncoder(loaded)
    tokens = np.stack([query_encoder.encode_image(fault(entry.path)) for entry in golden.pictures])
    cosines = dict(zip([entry.name for entry in golden.pictures], token_cosines(golden.tokens, tokens), strict=True))
    assert cosines[picture].min() < golden.thresholds["fp32"].cosine_min


def test_another_encoder_and_other_tokens_fail(bundle: Path, tmp_path: Path, light_encoder: LightEncoder) -> None:
    weights = {name: value.clone() for name, value in light_encoder.state_dict().items()}
    other = LightEncoder(
        "mobilenetv3_small_050",
        word_width=light_encoder.word_width,
        width=64,
        preprocessing=light_encoder.preprocessing,
    ).eval()
    other.load_state_dict(weights)
    with torch.no_grad():
        convolution = next(part for part in other.modules() if isinstance(part, torch.nn.Conv2d))
        convolution.weight[: len(convolution.weight) // 2] *= -1
    pictures = bundle / "golden" / "pictures"
    export_device_bundle(other, tmp_path / "o", word_space="a", foundation="f", pictures=pictures, variants=())
    replaced = shutil.copytree(bundle, tmp_path / "replaced")
    shutil.copy(tmp_path / "o" / "encoder.onnx", replaced / "encoder.onnx")
    assert not run_selftest(DeviceBundle.load(sign(replaced)), repeats=1).passed
    changed = shutil.copytree(bundle, tmp_path / "changed")
    tokens = np.load(changed / "golden" / "tokens.npy")
    np.save(changed / "golden" / "tokens.npy", np.roll(tokens, 1, axis=0))
    assert not run_selftest(DeviceBundle.load(sign(changed)), repeats=1).passed


def test_an_encoder_that_is_not_the_original_gets_no_golden_part(
    bundle: Path, tmp_path: Path, light_encoder: LightEncoder
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "b")
    shutil.rmtree(folder / "golden")
    sign(folder, golden=None)
    torch.manual_seed(7)
    other = LightEncoder("mobilenetv3_small_050", word_width=48, width=64, preprocessing=light_encoder.preprocessing)
    with pytest.raises(ParityError, match="golden tokens, fp32"):
        write_golden(folder, other.eval(), find_pictures(bundle / "golden" / "pictures"))
    assert not (folder / "golden").exists()


def test_an_int8_encoder_is_held_to_what_was_measured(
    bundle: Path, tmp_path: Path, light_encoder: LightEncoder
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "b")
    shutil.rmtree(folder / "golden")
    sign(folder, golden=None, encoders={"int8": "encoder.onnx"}, default_encoder="int8")
    record = write_golden(folder, light_encoder, find_pictures(bundle / "golden" / "pictures"))
    limits = read_golden(DeviceBundle.load(sign(folder, golden=record))).thresholds["int8"]
    measured = record["measured"]["int8"]
    assert limits.cosine_min == pytest.approx(measured["cosine_min"] - 0.005)
    assert limits.error_to_spread_max == pytest.approx(measured["error_to_spread"] + 0.1)


def test_sources_small_ones_first_and_without_what_they_say_about_people(
    tmp_path: Path, bundle: Path, light_encoder: LightEncoder
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(folder / "a secret name.png")
    assert (folder / "a secret name.png").stat().st_size > MAX_SOURCE_BYTES
    exif = Image.Exif()
    exif[0x010F] = "Camera of Someone"
    Image.new("RGB", (30, 20), "red").save(folder / "b.jpg", exif=exif)
    Image.new("RGB", (30, 20), "green").save(folder / "c.png")
    Image.new("RGB", (3000, 20), "green").save(folder / "strip.png")
    (folder / "d.png").write_bytes(b"no picture")
    (folder / "e.txt").write_text("no picture")
    copy = shutil.copytree(bundle, tmp_path / "b")
    shutil.rmtree(copy / "golden")
    sign(copy, golden=None)
    record = write_golden(copy, light_encoder, find_pictures(folder))
    assert record["pictures"] == len(_HARD) + 3
    written = copy / "golden" / "pictures"
    assert {path.name for path in written.iterdir()} - _HARD == {"picture_0.webp", "picture_1.png", "picture_2.webp"}
    assert (written / "picture_1.png").read_bytes() == (folder / "c.png").read_bytes()
    data = b"".join(path.read_bytes() for path in (copy / "golden").rglob("*") if path.is_file())
    assert b"Someone" not in data and b"secret" not in data
    assert all((written / f"picture_{i}.webp").stat().st_size <= MAX_SOURCE_BYTES for i in (0, 2))
    assert run_selftest(DeviceBundle.load(sign(copy, golden=record)), repeats=1).passed
    with pytest.raises(ExportError, match="at least one picture"):
        write_golden(copy, light_encoder, [folder / "d.png"])


def test_the_golden_part_is_small(bundle: Path, light_encoder: LightEncoder) -> None:
    size_bytes = sum(path.stat().st_size for path in (bundle / "golden").rglob("*") if path.is_file())
    assert DeviceBundle.load(bundle).manifest.properties["golden"]["size_bytes"] == size_bytes
    tokens_bytes = (len(_HARD) + GOLDEN_SOURCES) * light_encoder.sentence_length * light_encoder.word_width * 4
    assert size_bytes - tokens_bytes < 50_000


def test_a_picture_of_50_megapixels(bundle: Path, light_encoder: LightEncoder, tmp_path: Path) -> None:
    width, height = 8192, 6144
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = np.array(coarse.resize((width, height), Image.Resampling.BILINEAR))
    picture[:, ::3] //= 2  # lines that alias when shrinking takes every hundredth pixel
    assert width * height > 50e6
    path = tmp_path / "large.jpg"
    Image.fromarray(picture).save(path, quality=80, exif=_turned())
    del picture
    pixels = read_image(path)
    assert pixels.shape == (width, height, 3)
    expected = encode_in_torch(light_encoder, pixels)
    found = QueryEncoder(DeviceBundle.load(bundle)).encode_image(pixels)
    assert token_cosines(expected, found).min() > 0.999
    aliased = encode_in_torch(light_encoder, np.ascontiguousarray(pixels[::93, ::93]))
    assert token_cosines(expected, aliased).min() < 0.999  # so the line above can fail


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    "name", ["grey", "grey_alpha", "palette_alpha", "16_bit", "cmyk", "one_pixel", "turned", "wide"]
)
def test_kinds_of_pictures_agree_with_the_training_reference(
    bundle: Path, light_encoder: LightEncoder, name: str
) -> None:
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((150, 110))
    alpha = Image.linear_gradient("L").resize(picture.size)
    stream = io.BytesIO()
    if name == "grey":
        picture.convert("L").save(stream, "PNG")
    elif name == "grey_alpha":
        Image.merge("LA", (picture.convert("L"), alpha)).save(stream, "PNG")
    elif name == "palette_alpha":
        picture.putalpha(alpha)
        picture.quantize(64, method=Image.Quantize.FASTOCTREE).save(stream, "PNG")
    elif name == "16_bit":
        Image.fromarray(np.asarray(picture.convert("L"), dtype=np.uint16) * 257).save(stream, "PNG")
    elif name == "cmyk":
        picture.convert("CMYK").save(stream, "JPEG")
    elif name == "one_pixel":
        picture.resize((1, 1)).save(stream, "PNG")
    elif name == "turned":
        picture.save(stream, "JPEG", exif=_turned())
    else:
        picture.resize((400, 60)).save(stream, "WEBP")
    path = bundle.parent / name
    path.write_bytes(stream.getvalue())
    pixels = read_image(path)
    expected = encode_in_torch(light_encoder, pixels)
    assert (
        compare_tokens(expected[None], QueryEncoder(DeviceBundle.load(bundle)).encode_image(pixels)[None]).cosine_min
        > 0.999
    )

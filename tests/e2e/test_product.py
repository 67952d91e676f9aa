"""The product as a user meets it: the command, the committed bundles, a real server."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asymcir_common.manifest import MANIFEST_NAME

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _query(asymcir: Run, assets: Path, address: str, *words: object) -> "subprocess.CompletedProcess[str]":
    return asymcir("query", "--server", address, "--device-bundle", assets / "device", *words)


def test_a_picture_in_an_unseen_style_finds_its_concept(asymcir: Run, assets: Path, address: str) -> None:
    image = assets / "queries.zip" / "red-heart.webp"
    done = _query(asymcir, assets, address, "--image", image, "--json", "--top-k", 10)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "red-heart" in [hit["id"] for hit in answer["hits"]]
    assert all(value >= 0 for value in answer["timing"].values())


def test_the_typed_change_moves_the_answer(asymcir: Run, assets: Path, address: str) -> None:
    image = assets / "queries.zip" / "red-heart.webp"
    words = ("--image", image, "--text", "is blue", "--exclude", "red-heart", "--json", "--top-k", 200)
    changed = json.loads(_query(asymcir, assets, address, *words).stdout)
    plain = json.loads(_query(asymcir, assets, address, *(w for w in words if w not in ("--text", "is blue"))).stdout)
    ranks = [[hit["id"] for hit in answer["hits"]].index("blue-heart") for answer in (changed, plain)]
    assert ranks[0] < 5 and changed["hits"] != plain["hits"]
    scores = [{hit["id"]: hit["score"] for hit in answer["hits"]} for answer in (changed, plain)]
    assert scores[0]["blue-heart"] > scores[1]["blue-heart"]
    assert "red-heart" not in [hit["id"] for hit in changed["hits"]]


def test_int8_tokens_answer_like_fp16_at_half_the_size(asymcir: Run, assets: Path, address: str) -> None:
    image = assets / "queries.zip" / "woman.webp"
    found = {}
    for encoding in ("fp16", "int8"):
        done = _query(
            asymcir, assets, address, "--image", image, "--text", "has red hair", "--encoding", encoding, "--json"
        )
        found[encoding] = json.loads(done.stdout)
    ids = {encoding: [hit["id"] for hit in answer["hits"]] for encoding, answer in found.items()}
    assert len(set(ids["fp16"]) & set(ids["int8"])) >= 8
    assert found["int8"]["request_size_bytes"] < 0.6 * found["fp16"]["request_size_bytes"]
    assert found["fp16"]["request_size_bytes"] <= 5120


def test_encoded_tokens_can_be_sent_later(asymcir: Run, assets: Path, address: str, tmp_path: Path) -> None:
    image, tokens = assets / "queries.zip" / "woman.webp", tmp_path / "tokens.npy"
    assert asymcir("encode", image, "--device-bundle", assets / "device", "--out", tokens).returncode == 0
    assert np.load(tokens).shape[-1] == 384
    direct = json.loads(_query(asymcir, assets, address, "--image", image, "--json").stdout)
    later = json.loads(_query(asymcir, assets, address, "--tokens-file", tokens, "--json").stdout)
    assert [hit["id"] for hit in direct["hits"]] == [hit["id"] for hit in later["hits"]]


def test_a_sentence_can_be_cut_to_any_length(asymcir: Run, assets: Path, address: str) -> None:
    image = assets / "queries.zip" / "red-heart.webp"
    query = ("--image", image, "--text", "is blue", "--exclude", "red-heart", "--json", "--top-k", 10)
    sizes_bytes = []
    for count in (1, 2, 5, 6):
        done = _query(asymcir, assets, address, *query, "--tokens", count)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert len(answer["hits"]) == 10
        sizes_bytes.append(answer["request_size_bytes"])
    assert sizes_bytes == sorted(sizes_bytes) and sizes_bytes[0] < 0.3 * sizes_bytes[-1]
    whole = json.loads(_query(asymcir, assets, address, *query).stdout)
    assert whole["hits"] == answer["hits"] and whole["request_size_bytes"] == sizes_bytes[-1]
    done = _query(asymcir, assets, address, *query, "--tokens", 7)
    assert done.returncode == 1 and "expected 1 to 6 tokens" in done.stderr


@pytest.mark.parametrize(
    ("modifier", "code", "words"),
    [
        ("   ", 0, ""),
        ("is 😀 🎉", 0, ""),
        ("very " * 2000, 1, "modifier"),
        ("dark " * 100, 1, "shorten the modifier"),
    ],
    ids=["white space", "emoji", "10,000 characters", "past the context"],
)
def test_odd_modifiers_are_answered_or_refused_in_one_line(
    asymcir: Run, assets: Path, address: str, modifier: str, code: int, words: str
) -> None:
    done = _query(asymcir, assets, address, "--image", assets / "queries.zip" / "woman.webp", "--text", modifier)
    assert done.returncode == code, done.stderr
    if code:
        assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_device_bundle_of_another_word_space_is_refused(
    asymcir: Run, assets: Path, address: str, tmp_path: Path
) -> None:
    other = tmp_path / "device"
    shutil.copytree(assets / "device", other)
    manifest = json.loads((other / MANIFEST_NAME).read_text(encoding="utf-8"))
    ours, manifest["properties"]["word_space"] = manifest["properties"]["word_space"], "0" * 64
    (other / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
    done = asymcir(
        "query", "--server", address, "--device-bundle", other, "--image", assets / "queries.zip" / "woman.webp"
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "000000" in done.stderr and ours[:12] in done.stderr


def test_a_gallery_of_another_target_space_is_refused(
    asymcir: Run, assets: Path, gallery: Path, tmp_path: Path
) -> None:
    other = tmp_path / "server"
    shutil.copytree(assets / "server", other)
    manifest = json.loads((other / MANIFEST_NAME).read_text(encoding="utf-8"))
    manifest["properties"]["target_spaces"] = dict.fromkeys(("union", "original", "sum"), "0" * 64)
    (other / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
    done = asymcir("serve", "--server-bundle", other, "--gallery", gallery, "--port", 0)
    assert done.returncode == 1 and "target space" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("bundle", ["device", "server"])
def test_a_changed_byte_or_a_missing_file_does_not_load(
    asymcir: Run, assets: Path, picture_list: Path, tmp_path: Path, bundle: str
) -> None:
    copy = tmp_path / bundle
    shutil.copytree(assets / bundle, copy)
    largest = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if bundle == "device":
        words = ["encode", assets / "queries.zip" / "woman.webp", "--device-bundle", copy]
    else:
        words = ["gallery", "build", picture_list, "--server-bundle", copy, "--gallery", tmp_path / "gallery"]
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    changed = asymcir(*words)
    largest.unlink()
    missing = asymcir(*words)
    for done, expected in ((changed, "not the file its manifest describes"), (missing, "lacks")):
        assert done.returncode == 1 and expected in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_no_server_and_a_port_in_use_are_one_line(asymcir: Run, assets: Path, gallery: Path, address: str) -> None:
    image = assets / "queries.zip" / "woman.webp"
    absent = asymcir("query", "--server", "127.0.0.1:1", "--device-bundle", assets / "device", "--image", image)
    assert absent.returncode == 1 and "asymcir serve" in absent.stderr and "Traceback" not in absent.stderr
    port = address.rpartition(":")[2]
    taken = asymcir("serve", "--server-bundle", assets / "server", "--gallery", gallery, "--port", port)
    assert taken.returncode == 1 and port in taken.stderr and len(taken.stderr.strip().splitlines()) == 1


def test_torch_is_not_imported_by_what_runs_on_a_device_or_a_server(
    assets: Path, picture_list: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from asymcir_edge.cli import main; "
        f"code = main(['gallery', 'build', {str(picture_list)!r}, '--server-bundle', {str(assets / 'server')!r}, "
        f"'--gallery', {str(tmp_path / 'gallery')!r}]); "
        "loaded = [name for name in ('torch', 'open_clip', 'timm', 'transformers', 'onnx') if name in sys.modules]; "
        "sys.exit(f'imported: {loaded}' if loaded or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

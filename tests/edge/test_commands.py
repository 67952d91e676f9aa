"""The `asymcir` command as a user meets it: another process, its output and its exit code."""

import io
import json
import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny_device_bundle as tiny
from asymcir_protos import unpack_tokens
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from google.protobuf.json_format import MessageToJson
from PIL import Image


def run(*arguments: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asymcir_edge", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def fails(*arguments: object, code: int = 1) -> str:
    """Run, expect failure in one line, and return that line."""
    done = run(*arguments, check=False)
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("asymcir: error: ")
    return line


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_device_bundle(tmp_path_factory.mktemp("device") / "bundle")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good ones by their first letter g, bad ones by b."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    noise.save(folder / "good.png")
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(folder / "good_cmyk.jpg")
    Image.new("LA", (1, 1), (0, 128)).save(folder / "good_1x1.png")
    Image.fromarray(np.full((5, 7), 40_000, np.uint16)).save(folder / "good 16 bit.png")
    stream = io.BytesIO()
    noise.save(stream, "JPEG")
    (folder / "bad_truncated.jpg").write_bytes(stream.getvalue()[:-900])
    (folder / "bad_empty.png").write_bytes(b"")
    (folder / "bad_text.png").write_text("no picture\nat all\n")
    Image.new("RGB", (5000, 2)).save(folder / "bad_strip.png")
    return {path.stem: path for path in folder.iterdir()}


def test_encode_one(bundle: Path, pictures: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "tokens.npy"
    done = run("encode", pictures["good"], "--device-bundle", bundle, "--out", out)
    assert done.stderr == ""
    assert "tokens [4, 8]" in done.stdout and f"wrote {out}" in done.stdout
    expected = tiny.encode_naively(np.asarray(Image.open(pictures["good"])))
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)
    assert "exists" in fails("encode", pictures["good"], "--device-bundle", bundle, "--out", out)
    run("encode", pictures["good"], "--device-bundle", bundle, "--out", out, "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.npy"]


def test_encode_several_as_json(bundle: Path, pictures: dict[str, Path], tmp_path: Path) -> None:
    good = [path for name, path in sorted(pictures.items()) if name.startswith("good")]
    out = tmp_path / "tokens"
    done = run("encode", *good, "--device-bundle", bundle, "--precision", "fp32", "--json", "--out", out)
    record = json.loads(done.stdout)
    assert [picture["path"] for picture in record["pictures"]] == [str(path) for path in good]
    assert record["word_space"] == tiny.WORD_SPACE and record["precision"] == "fp32"
    assert record["pictures"][0]["shape"] == [4, 8]
    assert 64 <= record["pictures"][0]["fp16_size_bytes"] <= 72
    tokens = np.load(out)
    assert tokens.shape == (len(good), 4, 8) and tokens.dtype == np.float32
    norms = np.linalg.norm(tokens[0], axis=1)
    assert record["pictures"][0]["norm_max"] == pytest.approx(norms.max())


def test_encode_keeps_the_good_ones(bundle: Path, pictures: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "tokens.npy"
    words = ("encode", pictures["bad_empty"], pictures["good"], "--device-bundle", bundle, "--json", "--out", out)
    done = run(*words, check=False)
    record = json.loads(done.stdout)
    assert done.returncode == 1 and "is empty" in done.stderr
    assert [picture["path"] for picture in record["pictures"]] == [str(pictures["good"])]
    assert [picture["path"] for picture in record["failed"]] == [str(pictures["bad_empty"])]
    assert np.load(out).shape == (1, 4, 8)
    strict = run(*words, "--force", "--strict", check=False)
    assert (strict.returncode, strict.stdout) == (1, "")
    bad = ("encode", pictures["bad_empty"], pictures["bad_text"], "--device-bundle", bundle)
    assert "none of the 2 pictures" in run(*bad, check=False).stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad_truncated", "cannot decode"),
        ("bad_empty", "is empty"),
        ("bad_text", "not a picture format"),
        ("bad_strip", "aspect ratio"),
    ],
)
def test_bad_picture(bundle: Path, pictures: dict[str, Path], tmp_path: Path, name: str, message: str) -> None:
    out = tmp_path / "tokens.npy"
    both = ("encode", pictures["good"], pictures[name], "--device-bundle", bundle, "--out", out)
    assert message in fails(*both, "--strict")
    assert not out.exists()


def test_bad_paths(bundle: Path, pictures: dict[str, Path], tmp_path: Path) -> None:
    good = pictures["good"]
    assert "No such file" in fails("encode", tmp_path / "nothing\nat all.png", "--device-bundle", bundle)
    assert "found none" in fails("encode", good, "--device-bundle", tmp_path / "nothing")
    assert "no encoder of precision 'int4'" in fails("encode", good, "--device-bundle", bundle, "--precision", "int4")
    assert "is a folder" in fails("encode", good, "--device-bundle", bundle, "--out", tmp_path)
    assert "no folder" in fails("encode", good, "--device-bundle", bundle, "--out", tmp_path / "a" / "b.npy")


def test_bad_bundles(pictures: dict[str, Path], tmp_path: Path) -> None:
    changed = tiny.write_device_bundle(tmp_path / "changed")
    data = bytearray((changed / "encoder.onnx").read_bytes())
    data[-1] ^= 1
    (changed / "encoder.onnx").write_bytes(data)
    assert "not the file" in fails("encode", pictures["good"], "--device-bundle", changed)
    (changed / "encoder.onnx").unlink()
    assert "lacks encoder.onnx" in fails("encode", pictures["good"], "--device-bundle", changed)
    no_graph = tiny.write_device_bundle(tmp_path / "no_graph", {"fp32": b"no graph"})
    assert "cannot open" in fails("encode", pictures["good"], "--device-bundle", no_graph)


class EchoServicer(retrieval_pb2_grpc.RetrievalServicer):
    """Answers a search with what it was asked, and refuses what is not of its space."""

    def Search(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.word_space != tiny.WORD_SPACE:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"word_space {request.word_space}: export it again")
        if len(request.modifier) > 100:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the modifier does not fit")
        response = retrieval_pb2.SearchResponse(gallery=request.gallery or "main", gallery_version="000001")
        hit = response.hits.add(id="first", score=float(unpack_tokens(request.tokens)[0, 0]))
        hit.metadata.update({"name": f"[{request.modifier}]\x1b[31m"})
        response.hits.add(id=",".join(request.excluded_ids), score=request.top_k)
        if request.HasField("filter"):
            hit.item = f"mug {request.every_picture} {MessageToJson(request.filter, indent=None)}"
        return response

    def Describe(self, request: Any, context: grpc.ServicerContext) -> Any:
        gallery = retrieval_pb2.Gallery(name="main", version="000001", size=3, index_kind="flat")
        return retrieval_pb2.DescribeResponse(server_version="9.9", word_space=tiny.WORD_SPACE, galleries=[gallery])


@pytest.fixture(scope="module")
def server() -> Any:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    retrieval_pb2_grpc.add_RetrievalServicer_to_server(EchoServicer(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_query(bundle: Path, pictures: dict[str, Path], server: str) -> None:
    query = ["query", "--image", pictures["good"], "--server", server, "--device-bundle", bundle]
    table = run(*query, "--text", "but blue 💙", "--exclude", "a", "--exclude", "b", "--top-k", 5).stdout
    header, first, second, *_ = table.splitlines()
    assert header.split() == ["rank", "score", "id", "name"]
    assert first.split(maxsplit=3)[2:] == ["first", "[but blue 💙]?[31m"]  # no escape codes from a server
    assert second.split()[1:] == ["5.0000", "a,b"]
    assert "tokens [4, 8] as fp16" in table and "round trip" in table
    record = json.loads(run(*query, "--json", "--encoding", "int8", "--gallery", "other").stdout)
    assert record["gallery"] == "other" and len(record["hits"]) == 2
    assert record["timing"]["round_trip_ms"] > 0 and record["device"]["encode_ms"] > 0


def test_query_with_a_filter(bundle: Path, pictures: dict[str, Path], server: str) -> None:
    query = ["query", "--image", pictures["good"], "--server", server, "--device-bundle", bundle]
    first = run(*query, "--where", "not exists sold", "--every-picture").stdout.splitlines()[1]
    assert 'mug True {"negated": {"existence": {"key": "sold"}}}' in first
    record = json.loads(run(*query, "--json", "--where", "not exists sold").stdout)
    assert record["hits"][0]["item"].startswith("mug False")
    result = run(*query, "--where", "price < 20 and colour on ('red')", check=False)
    assert result.returncode == 1
    error, text, caret = result.stderr.splitlines()
    assert error.startswith("asymcir: error: the filter at column 23: expected one of = != < <= > >= in prefix, found")
    assert text == "  price < 20 and colour on ('red')"
    assert caret == "                        ^"


def test_query_by_tokens(bundle: Path, pictures: dict[str, Path], server: str, tmp_path: Path) -> None:
    tokens = np.arange(32, dtype=np.float32).reshape(4, 8) / 4 + 1
    np.save(tmp_path / "tokens.npy", tokens)
    query = ["query", "--server", server, "--device-bundle", bundle, "--tokens-file"]
    record = json.loads(run(*query, tmp_path / "tokens.npy", "--json").stdout)
    assert record["hits"][0]["score"] == 1.0
    np.save(tmp_path / "several.npy", tokens[None])
    assert "[L, 8]" in fails(*query, tmp_path / "several.npy")
    assert "not a .npy file" in fails(*query, pictures["good"])
    assert "there is no file" in fails(*query, tmp_path / "nothing.npy")
    short = json.loads(run(*query, tmp_path / "tokens.npy", "--tokens", 2, "--json").stdout)
    assert short["request_size_bytes"] < record["request_size_bytes"]
    assert "expected 1 to 4 tokens, for the sentence has 4, got 5" in fails(
        *query, tmp_path / "tokens.npy", "--tokens", 5
    )


def test_a_sentence_is_cut(bundle: Path, pictures: dict[str, Path], tmp_path: Path) -> None:
    encode = ["encode", pictures["good"], "--device-bundle", bundle]
    run(*encode, "--out", tmp_path / "whole.npy")
    record = json.loads(run(*encode, "--out", tmp_path / "cut.npy", "--tokens", 3, "--json").stdout)
    assert record["pictures"][0]["shape"] == [3, 8]
    np.testing.assert_array_equal(np.load(tmp_path / "cut.npy"), np.load(tmp_path / "whole.npy")[:3])
    for wrong in (0, 5, -1):
        assert f"expected 1 to 4 tokens, for the sentence has 4, got {wrong}" in fails(*encode, f"--tokens={wrong}")
    assert "a file of tokens is given as --tokens-file" in run(*encode, "--tokens", "old.npy", check=False).stderr


def test_query_refused(bundle: Path, pictures: dict[str, Path], server: str, tmp_path: Path) -> None:
    query = ["query", "--image", pictures["good"], "--server", server, "--device-bundle"]
    assert "the modifier does not fit" in fails(*query, bundle, "--text", "x" * 10_000)
    other = tiny.write_device_bundle(tmp_path / "other", word_space="another")
    assert "does not fit this device: word_space another" in fails(*query, other)


def test_server_not_running(bundle: Path, pictures: dict[str, Path]) -> None:
    line = fails("query", "--image", pictures["good"], "--device-bundle", bundle, "--server", "127.0.0.1:1")
    assert line.endswith("no server answers at 127.0.0.1:1: start one with `asymcir serve`, or check the address")
    assert "HOST:PORT" in fails("describe", "--server", "127.0.0.1")


def test_describe(server: str) -> None:
    assert "gallery main, version 000001: 3 items" in run("describe", "--server", server).stdout
    assert json.loads(run("describe", "--server", server, "--json").stdout)["server_version"] == "9.9"


def test_reader_that_goes_away(server: str) -> None:
    command = [sys.executable, "-m", "asymcir_edge", "describe", "--server", server]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_imports_no_runtime() -> None:
    code = (
        "import sys; from asymcir_edge.cli import main; assert main(['--help']) == 0; "
        "assert not {'onnxruntime', 'grpc', 'torch', 'faiss'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("encode", "query", "describe", "selftest", "serve", "gallery", "train", "export", "eval", "demo"):
        assert f"\n    {name} " in done.stdout

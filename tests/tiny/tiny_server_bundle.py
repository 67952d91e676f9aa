"""A tiny server bundle of random weights, written with onnx.helper, and NumPy references of every graph in it."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from asymcir_common import Preprocessing, write_manifest
from asymcir_common.manifest import SERVER_BUNDLE
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

_TEXT = """[pad] [start] [end] [unk] a photo of that but in with is wearing and the not red blue green yellow black
white dark light smiling crying hair hat cat dog woman man heart flag half past two x"""
WORDS = _TEXT.split()
PAD, START, END, UNK = range(4)
OPSET = 17


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """Sizes, weights, and what each graph must answer."""

    causal: bool = False
    word_width: int = 12
    embedding_width: int = 16
    context_length: int = 24
    image_size: int = 8
    seed: int = 7
    slow_steps: int = 0
    """Matrix products of 1024 x 1024 that the text tower does for nothing: what makes a request take its time."""
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        width, joint = self.word_width, self.embedding_width
        shapes = {"table": (len(WORDS), width), "text": (width, joint), "visual": (12, joint), "shift": (joint,)}
        for name, shape in shapes.items():
            self.weights[name] = generator.standard_normal(shape).astype(np.float32)

    @property
    def word_space(self) -> str:
        return self._digest("table", "text")

    @property
    def target_spaces(self) -> dict[str, str]:
        return {
            target: hashlib.sha256(f"{target} {self._digest('visual', 'table', 'text')}".encode()).hexdigest()
            for target in ("union", "original", "sum")
        }

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=self.image_size, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def text_features(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reference text tower for one unpadded row [T, D]; the causal one pools a running mean at its last place."""
        return np.tanh(row.mean(axis=0) @ self.weights["text"]) + 0.1 * self.weights["shift"]

    def image_features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Reference visual tower: means of the four quadrants [2, 2, 3], then a linear map."""
        half = self.image_size // 2
        scaled = pixels.astype(np.float32) / 127.5 - 1.0
        quadrants = scaled.reshape(len(pixels), 2, half, 2, half, 3).mean(axis=(2, 4)).reshape(len(pixels), 12)
        return quadrants @ self.weights["visual"]

    def union(self, image: NDArray[np.float32], text: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reference head: the gate is the mean of image * text."""
        gate = (image * text).mean(axis=1, keepdims=True)
        mixed = gate * image + (1 - gate) * text
        return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)

    def word_ids(self, text: str) -> list[int]:
        return [WORDS.index(word) if word in WORDS else UNK for word in text.lower().split()]

    def compose(self, tokens: NDArray[np.float32], modifier: str) -> NDArray[np.float32]:
        """Reference composition, one list of rows at a time."""
        after = f"that {modifier}" if modifier.strip() else ""
        table = self.weights["table"]
        rows = [table[START], *(table[i] for i in self.word_ids("a photo of")), *tokens]
        rows += [table[i] for i in self.word_ids(after)] + [table[END]]
        return np.stack(rows)

    def _digest(self, *names: str) -> str:
        sha256 = hashlib.sha256(str(self.causal).encode())
        for name in names:
            sha256.update(self.weights[name].tobytes())
        return sha256.hexdigest()


def write_tiny_bundle(folder: Path, model: TinyModel, *, table_dtype: str = "float32") -> Path:
    """Write the bundle; returns its folder."""
    folder.mkdir(parents=True)
    (_write_causal_text if model.causal else _write_masked_text)(folder / "text_encoder.onnx", model)
    _write_visual(folder / "visual_encoder.onnx", model)
    _write_union(folder / "union_head.onnx", model)
    table, scales_name = model.weights["table"], None
    if table_dtype == "int8":
        scales = (np.abs(table).max(axis=1) / 127).astype(np.float32)
        np.save(folder / "word_embeddings.npy", np.rint(table / scales[:, None]).astype(np.int8))
        scales_name = "word_embedding_scales.npy"
        np.save(folder / scales_name, scales)
    else:
        np.save(folder / "word_embeddings.npy", table.astype(table_dtype))
    write_tokenizer(folder / "tokenizer.json")
    write_tiny_manifest(folder, model, scales_name=scales_name)
    return folder


def write_tiny_manifest(folder: Path, model: TinyModel, *, scales_name: str | None = None, **changes: object) -> None:
    """Write the manifest over whatever lies in the folder; `changes` replace properties."""
    properties: dict[str, object] = {
        "word_space": model.word_space,
        "target_spaces": model.target_spaces,
        "text": {
            "file": "text_encoder.onnx",
            "word_embeddings": "word_embeddings.npy",
            "word_embedding_scales": scales_name,
            "context_length": model.context_length,
            "word_width": model.word_width,
            "embedding_width": model.embedding_width,
            "causal": model.causal,
            "start_ids": [START],
            "end_ids": [END],
            "pad_id": PAD,
        },
        "tokenizer": {"file": "tokenizer.json", "clean": "lower"},
        "prompts": {
            "tokens": "a photo of {tokens}",
            "tokens_modifier": "a photo of {tokens} that {modifier}",
            "null": "",
        },
        "visual": {"file": "visual_encoder.onnx", "preprocessing": model.preprocessing.to_json()},
        "union": {"file": "union_head.onnx"},
        "foundation": {"name": "tiny"},
    }
    write_manifest(folder, format=SERVER_BUNDLE, properties={**properties, **changes})


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


def _write_masked_text(path: Path, model: TinyModel) -> None:
    """Mean of the word embeddings under the mask; declares no pool_index."""
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["word_embeddings", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask3", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["pooled"]),
        *_text_head(model),
    ]
    constants = {"last": np.array([-1]), "one": np.array([1]), **_text_constants(model)}
    inputs = [_value("word_embeddings", "f", ["b", "t", model.word_width]), _value("attention_mask", "i", ["b", "t"])]
    _save(path, nodes, inputs, [_value("text_features", "f", ["b", model.embedding_width])], constants)


def _write_causal_text(path: Path, model: TinyModel) -> None:
    """Running mean, gathered at pool_index; declares no attention_mask."""
    nodes = [
        helper.make_node("CumSum", ["word_embeddings", "axis"], ["sums"]),
        helper.make_node("Unsqueeze", ["pool_index", "last"], ["place"]),
        helper.make_node("GatherND", ["sums", "place"], ["total"], batch_dims=1),
        helper.make_node("Cast", ["place"], ["place_f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["place_f", "unit"], ["count"]),
        helper.make_node("Div", ["total", "count"], ["pooled"]),
        *_text_head(model),
    ]
    constants = {
        "axis": np.array(1),
        "last": np.array([-1]),
        "unit": np.array(1, np.float32),
        **_text_constants(model),
    }
    inputs = [_value("word_embeddings", "f", ["b", "t", model.word_width]), _value("pool_index", "i", ["b"])]
    _save(path, nodes, inputs, [_value("text_features", "f", ["b", model.embedding_width])], constants)


def _text_head(model: TinyModel) -> list[onnx.NodeProto]:
    steps = model.slow_steps
    return [
        helper.make_node("MatMul", ["pooled", "w"], ["projected"]),
        helper.make_node("ReduceMax", ["pooled"], ["any"], keepdims=0),
        helper.make_node("Mul", ["any", "zero"], ["nothing"]),
        helper.make_node("Expand", ["nothing", "square"], ["square0"]),
        *(helper.make_node("MatMul", [f"square{i}", f"square{i}"], [f"square{i + 1}"]) for i in range(steps)),
        helper.make_node("ReduceMax", [f"square{steps}"], ["still_nothing"], keepdims=0),
        helper.make_node("Tanh", ["projected"], ["bent"]),
        helper.make_node("Sum", ["bent", "shift", "still_nothing"], ["text_features"]),
    ]


def _text_constants(model: TinyModel) -> dict[str, NDArray[np.generic]]:
    side = 1024 if model.slow_steps else 1
    return {
        "w": model.weights["text"],
        "shift": (0.1 * model.weights["shift"]).astype(np.float32),
        "zero": np.array(0, np.float32),
        "square": np.array([side, side]),
    }


def _write_visual(path: Path, model: TinyModel) -> None:
    half = model.image_size // 2
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["divided"]),
        helper.make_node("Sub", ["divided", "unit"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "grid"], ["cells"]),
        helper.make_node("ReduceMean", ["cells"], ["means"], axes=[2, 4], keepdims=0),
        helper.make_node("Reshape", ["means", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["image_features"]),
    ]
    constants = {
        "scale": np.array(127.5, np.float32),
        "unit": np.array(1, np.float32),
        "grid": np.array([-1, 2, half, 2, half, 3]),
        "flat": np.array([-1, 12]),
        "w": model.weights["visual"],
    }
    inputs = [_value("pixels", "u", ["b", model.image_size, model.image_size, 3])]
    _save(path, nodes, inputs, [_value("image_features", "f", ["b", model.embedding_width])], constants)


def _write_union(path: Path, model: TinyModel) -> None:
    nodes = [
        helper.make_node("Mul", ["image_features", "text_features"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["gate2"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["gate2", "image_features"], ["left"]),
        helper.make_node("Sub", ["unit", "gate2"], ["rest"]),
        helper.make_node("Mul", ["rest", "text_features"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["mixed"]),
        helper.make_node("LpNormalization", ["mixed"], ["target"], axis=1, p=2),
        helper.make_node("Squeeze", ["gate2", "one"], ["gate"]),
    ]
    shape = ["b", model.embedding_width]
    inputs = [_value("image_features", "f", shape), _value("text_features", "f", shape)]
    outputs = [_value("target", "f", shape), _value("gate", "f", ["b"])]
    _save(path, nodes, inputs, outputs, {"unit": np.array(1, np.float32), "one": np.array([1])})


def _value(name: str, kind: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    types = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "u": TensorProto.UINT8}
    return helper.make_tensor_value_info(name, types[kind], shape)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, NDArray[np.generic]],
) -> None:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))

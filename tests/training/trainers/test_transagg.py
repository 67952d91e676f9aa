"""TransAgg: its wiring, its mask, its training with every target type."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from asymcir_training import CheckpointError, DataError, Foundation, FoundationError, UnionHead, load_foundation
from asymcir_training.engine.execution import Execution
from asymcir_training.models.checkpoints import load_transagg, load_union_head, save_transagg
from asymcir_training.models.transagg import TextPlaces, TransAgg, encode_text_places
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.trainers.targets import TARGETS, represent_targets
from asymcir_training.trainers.transagg import TransAggConfig, train_transagg
from asymcir_training.triplets.pictures import embed_modifiers
from asymcir_training.triplets.ranking import measure_recall
from tiny_blip import write_blip
from tiny_foundations import EMBEDDING_WIDTH
from torch.nn import functional

WIDTH = 32
COUNT = 32


def _text(count: int, length: int, *, seed: int = 0) -> TextPlaces:
    generator = torch.Generator().manual_seed(seed)
    end = torch.randint(1, length, (count,), generator=generator)
    return TextPlaces(
        features=torch.randn(count, WIDTH, generator=generator),
        tokens=torch.randn(count, length, WIDTH, generator=generator),
        padding=torch.arange(length)[None] > end[:, None],
        place=end,
    )


def _inputs(seed: int = 0) -> dict[str, Any]:
    """32 triplets over 64 pictures, the first 32 of which ask; each answers once."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image_features": torch.randn(2 * COUNT, WIDTH, generator=generator),
        "patches": torch.randn(COUNT, 4, WIDTH, generator=generator).half(),
        "text": _text(COUNT, 7),
        "null_features": torch.randn(1, WIDTH, generator=generator),
        "references": torch.arange(COUNT),
        "targets": torch.arange(COUNT) + COUNT,
    }


def _fusion(width: int = WIDTH) -> TransAgg:
    torch.manual_seed(0)
    return TransAgg(width)


@pytest.mark.parametrize("grad", [True, False])  # without gradients torch may take another path
def test_padding_does_not_change_the_query(grad: bool) -> None:
    fusion, text = _fusion().eval(), _text(6, 9)
    image, patches = torch.randn(6, WIDTH), torch.randn(6, 4, WIDTH)
    noise = torch.randn(6, 11, WIDTH)
    longer = dataclasses.replace(
        text,
        tokens=torch.cat([text.tokens, noise], dim=1),
        padding=torch.cat([text.padding, torch.ones(6, 11, dtype=torch.bool)], dim=1),
    )
    with torch.set_grad_enabled(grad):
        query = fusion(image, patches, text)
        torch.testing.assert_close(fusion(image, patches, longer), query, rtol=1e-4, atol=1e-5)
        alone = torch.cat([fusion(image[[i]], patches[[i]], text.pick(torch.tensor([i]))) for i in range(6)])
        torch.testing.assert_close(alone, query, rtol=1e-4, atol=1e-5)
        # It is the mask that does it: what stands at a word's place counts.
        changed = dataclasses.replace(text, tokens=text.tokens.clone())
        changed.tokens[:, 0] = noise[:, 0]
        assert (fusion(image, patches, changed) - query).abs().max() > 1e-3
    torch.testing.assert_close(query.norm(dim=1), torch.ones(6))


def test_the_query_is_the_weighted_sum_of_text_fused_and_image() -> None:
    fusion, text = _fusion().eval(), _text(3, 5)
    image, patches = torch.randn(3, WIDTH), torch.randn(3, 4, WIDTH)
    for place, part in ((0, text.features), (2, image)):
        with torch.no_grad():
            fusion.weights.weight.zero_()
            fusion.weights.bias.zero_()
            fusion.weights.bias[place] = -2.0  # no softmax: a weight may be negative
        torch.testing.assert_close(fusion(image, patches, text), functional.normalize(-2.0 * part, dim=1))


def test_the_fused_part_reads_the_class_and_end_of_text_places() -> None:
    fusion, text = _fusion().eval(), _text(4, 6)
    image, patches = torch.randn(4, WIDTH), torch.randn(4, 5, WIDTH)
    sequence = torch.cat([text.tokens, fusion.separator.expand(4, -1, -1), image[:, None], patches], dim=1)
    mask = torch.cat([text.padding, torch.zeros(4, 7, dtype=torch.bool)], dim=1)
    encoded = fusion.fusion(sequence, src_key_padding_mask=mask)
    both = torch.cat([encoded[:, 7], encoded[torch.arange(4), text.place]], dim=1)
    fused = fusion.combine(both)
    weights = fusion.weights(fused)
    expected = weights[:, [0]] * text.features + weights[:, [1]] * fused + weights[:, [2]] * image
    torch.testing.assert_close(fusion(image, patches, text), functional.normalize(expected, dim=1))


def test_sizes_are_the_papers() -> None:
    """Per layer 4d² + 2·2048·d and biases and norms; then 2d·8d, 8d·d, 3d."""
    d = 256
    layer = 4 * d * d + 4 * d + 2 * 2048 * d + 2048 + d + 4 * d
    rest = d + (2 * d * 8 * d + 8 * d) + (8 * d * d + d) + (3 * d + 3)
    assert sum(value.numel() for value in TransAgg(d).parameters()) == 2 * layer + rest
    with pytest.raises(FoundationError, match="heads divide, got 12"):
        TransAgg(12)


@pytest.mark.parametrize("target", TARGETS)
def test_gradient_reaches_every_part(target: str) -> None:
    fusion, inputs = _fusion().train(), _inputs()
    head = UnionHead(WIDTH).train() if target == "union" else None
    query = fusion(inputs["image_features"][:COUNT], inputs["patches"], inputs["text"])
    found = represent_targets(inputs["image_features"][COUNT:], inputs["null_features"], target, head)
    functional.cross_entropy(100.0 * query @ found.T, torch.arange(COUNT)).backward()
    for part in (fusion, head) if head is not None else (fusion,):
        silent = [name for name, value in part.named_parameters() if value.grad is None or not value.grad.any()]
        assert silent == []


def test_target_types() -> None:
    image, null = torch.randn(5, WIDTH), torch.randn(1, WIDTH)
    head = UnionHead(WIDTH).eval()
    torch.testing.assert_close(represent_targets(image, null, "original"), functional.normalize(image, dim=1))
    torch.testing.assert_close(represent_targets(image, null, "sum"), functional.normalize(image + null, dim=1))
    torch.testing.assert_close(represent_targets(image, null, "union", head), head(image, null.expand(5, -1))[0])
    with pytest.raises(DataError, match="needs a UNION head"):
        represent_targets(image, null, "union")
    with pytest.raises(DataError, match="got 'mean'"):
        represent_targets(image, null, "mean")


@pytest.mark.parametrize("target", TARGETS)
def test_thirty_two_triplets_are_learned_by_heart(target: str, tmp_path: Path) -> None:
    fusion, inputs = _fusion(), _inputs()
    torch.manual_seed(1)
    head = UnionHead(WIDTH) if target == "union" else None

    def recall() -> float:
        with torch.no_grad():
            query = fusion(inputs["image_features"][:COUNT], inputs["patches"], inputs["text"])
            gallery = represent_targets(inputs["image_features"][COUNT:], inputs["null_features"], target, head)
        return measure_recall(query, gallery, [[row] for row in range(COUNT)])["R@1"]

    for part in (fusion, head) if head is not None else (fusion,):
        part.eval()
    assert recall() < 0.2
    config = TransAggConfig(target=target, lr=3e-3, scale=20.0)  # type: ignore[arg-type]
    loop = LoopConfig(folder=tmp_path, steps=40, log_every=1, curves=False)
    train_transagg(fusion, head, **inputs, config=config, loop=loop)
    assert not fusion.training and recall() == 1.0
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["batch_accuracy"] == 1.0


def test_memory_mapped_patches_and_a_resumed_run_give_the_same(tmp_path: Path) -> None:
    inputs, config = _inputs(), TransAggConfig(target="sum", batch=8)
    whole, parts = _fusion(), _fusion()
    train_transagg(whole, None, **inputs, config=config, loop=LoopConfig(folder=tmp_path / "a", steps=6, curves=False))
    mapped = {**inputs, "patches": inputs["patches"].numpy()}
    loop = LoopConfig(folder=tmp_path / "b", steps=6, save_every=3, curves=False)
    calls = 0

    def stop(module: Any, arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    handle = parts.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train_transagg(parts, None, **mapped, config=config, loop=loop)
    handle.remove()
    resumed = _fusion()
    train_transagg(resumed, None, **mapped, config=config, loop=loop)
    assert calls == 5
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_parts_of_a_batch_give_the_gradients_of_the_whole(tmp_path: Path) -> None:
    inputs, config = _inputs(), TransAggConfig(batch=8, lr=1e-4)
    found = []
    for chunks in (1, 4):
        fusion = _fusion()
        torch.manual_seed(1)
        head = UnionHead(WIDTH)
        for module in (*fusion.modules(), *head.modules()):
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # what is dropped depends on the part
            if isinstance(module, torch.nn.MultiheadAttention):
                module.dropout = 0.0
        loop = LoopConfig(folder=tmp_path / str(chunks), steps=2, curves=False)
        train_transagg(fusion, head, **inputs, config=config, loop=loop, execution=Execution(chunks=chunks))
        lines = (tmp_path / str(chunks) / "log.jsonl").read_text().splitlines()
        found.append(json.loads(lines[-1]))
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-4)
    assert found[0]["norm"] == pytest.approx(found[1]["norm"], rel=1e-3)


def test_the_best_weights_by_validation_are_kept(tmp_path: Path) -> None:
    fusion, seen = _fusion(), []

    def validate(model: TransAgg, head: UnionHead | None) -> dict[str, float]:
        assert head is None and not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"R@1": float(-abs(len(seen) - 2))}  # the second is best

    loop = LoopConfig(folder=tmp_path, steps=6, validate_every=2, best="R@1", curves=False)
    summary = train_transagg(
        fusion, None, **_inputs(), config=TransAggConfig(target="sum"), loop=loop, validate=validate
    )
    assert (summary.best_step, len(seen)) == (4, 3)
    assert not torch.equal(seen[1]["weights.weight"], seen[2]["weights.weight"])
    for name, value in fusion.state_dict().items():
        assert torch.equal(value, seen[1][name]), name


def test_inputs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    inputs, loop = _inputs(), LoopConfig(folder=tmp_path, steps=1)
    head = UnionHead(WIDTH)
    cases: list[tuple[dict[str, Any], UnionHead | None, str, str]] = [
        ({}, None, "union", "needs a UNION head"),
        ({}, head, "sum", "no head to train"),
        ({"image_features": torch.zeros(64, 8)}, None, "sum", "one width"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, None, "sum", "a modifier, a reference and a target"),
        ({"references": torch.arange(COUNT) + 1}, None, "sum", "references below 32"),
    ]
    for changes, given, target, expected in cases:
        with pytest.raises(DataError, match=expected):
            config = TransAggConfig(target=target)  # type: ignore[arg-type]
            train_transagg(_fusion(), given, **(inputs | changes), config=config, loop=loop)
    for wrong in ({"batch": 0}, {"target": "mean"}):
        with pytest.raises(DataError, match="expected a"):
            TransAggConfig(**wrong)  # type: ignore[arg-type]


def test_modifiers_of_a_foundation(foundation: Foundation) -> None:
    texts = ["", "is red", "has a cat that is a dog that is blue", "is blue"]
    found = embed_modifiers(foundation, texts, batch=2)
    torch.testing.assert_close(found.features, foundation.encode_text(texts), rtol=1e-4, atol=1e-4)
    assert found.tokens.shape[:2] == found.padding.shape and found.tokens.shape[2] == EMBEDDING_WIDTH
    words = (~found.padding).sum(dim=1)
    assert words.tolist() == [len(foundation.start_ids + foundation.tokenize(t) + foundation.end_ids) for t in texts]
    assert found.place.tolist() == (words - 1).tolist()  # the end of text: no tower here pools a class token
    fusion = _fusion(EMBEDDING_WIDTH).eval()
    image, patches = torch.randn(4, EMBEDDING_WIDTH), torch.randn(4, 3, EMBEDDING_WIDTH)
    with torch.no_grad():
        alone = [
            fusion(image[[i]], patches[[i]], encode_text_places(foundation, [texts[i]])) for i in range(len(texts))
        ]
        torch.testing.assert_close(torch.cat(alone), fusion(image, patches, found), rtol=2e-3, atol=2e-3)


def test_the_text_is_read_where_its_tower_pools(clip_folder: Path, tmp_path: Path) -> None:
    for foundation in (load_foundation(f"local-dir:{clip_folder}"), load_foundation(f"blip:{write_blip(tmp_path)}")):
        found = encode_text_places(foundation, ["is red", "a cat"])
        torch.testing.assert_close(found.tokens[torch.arange(2), found.place], found.features)


def test_checkpoint(tmp_path: Path) -> None:
    fusion, text = _fusion().eval(), _text(2, 4)
    save_transagg(tmp_path / "t", fusion, {"target": "sum"})
    loaded, metadata = load_transagg(tmp_path / "t")
    image, patches = torch.randn(2, WIDTH), torch.randn(2, 4, WIDTH)
    assert metadata == {"target": "sum"}
    torch.testing.assert_close(loaded(image, patches, text), fusion(image, patches, text))
    with pytest.raises(CheckpointError, match=r"asymcir.union-head at .* got asymcir.transagg"):
        load_union_head(tmp_path / "t")
    with pytest.raises(DataError, match="expected 2 rows"):
        fusion(image, patches[:1], text)

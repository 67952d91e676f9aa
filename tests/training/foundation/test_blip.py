import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import preprocess
from asymcir_training import Foundation, FoundationError, UnionHead, load_foundation
from asymcir_training.foundation.blip import CHECKPOINTS
from PIL import Image
from tiny_blip import CONTEXT, PATCHES, SIDE, VISION_WIDTH, build_blip, write_blip
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH
from torch.nn import functional
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

TEXTS = ["a photo of a cat", "a red dog", "", "a photo of a blue cat that is a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("foundation") / "blip")


@pytest.fixture(scope="module")
def foundation(folder: Path) -> Foundation:
    return load_foundation(f"blip:{folder}")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> BlipForImageTextRetrieval:
    return BlipForImageTextRetrieval.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(len(TEXTS), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_it_describes_itself(foundation: Foundation) -> None:
    assert foundation.name == "blip:blip"  # no path of a machine
    assert (foundation.word_width, foundation.embedding_width) == (WORD_WIDTH, EMBEDDING_WIDTH)
    assert foundation.context_length == CONTEXT
    assert not foundation.causal and not foundation.pads_to_context
    assert (foundation.start_ids, foundation.end_ids, foundation.pad_id) == ([2], [3], 0)
    spec = foundation.preprocessing
    assert (spec.size, spec.interpolation, spec.resize) == (SIDE, "bicubic", "squash")
    assert all(not parameter.requires_grad for parameter in foundation.parameters())


def test_similarities_equal_transformers_own(
    foundation: Foundation, theirs: BlipForImageTextRetrieval, folder: Path, pixels: torch.Tensor
) -> None:
    words = BertTokenizerFast.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(
            input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels, use_itm_head=False
        ).itm_score
        images = functional.normalize(foundation.encode_pixels(pixels), dim=-1)
        texts = functional.normalize(foundation.encode_text(TEXTS), dim=-1)
    assert expected.std() > 0.02  # or any two models would agree
    torch.testing.assert_close(images @ texts.T, expected, rtol=1e-4, atol=1e-5)


def test_matching_logits_equal_transformers_own(
    foundation: Foundation, theirs: BlipForImageTextRetrieval, folder: Path, pixels: torch.Tensor
) -> None:
    words = BertTokenizerFast.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        embeddings = foundation.word_embedding_table()[words.input_ids]
        states = foundation.encode_image_states(pixels)
        expected = theirs(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels).itm_score
        found = foundation.match(embeddings, words.attention_mask, states)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=0).min() > 0.02
    assert states.shape == (len(TEXTS), PATCHES + 1, VISION_WIDTH)


def test_patches_and_the_image_take_the_same_projection(
    foundation: Foundation, theirs: BlipForImageTextRetrieval, pixels: torch.Tensor
) -> None:
    with torch.no_grad():
        states = theirs.vision_model(pixels).last_hidden_state
        projected = theirs.vision_proj(states)
        torch.testing.assert_close(foundation.encode_image_states(pixels), states)
        torch.testing.assert_close(foundation.encode_pixels(pixels), projected[:, 0])
        torch.testing.assert_close(foundation.encode_patches(pixels), projected[:, 1:])


def test_pictures_come_in_as_blips_processor_brings_them(foundation: Foundation, folder: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((70, 50), Image.Resampling.BICUBIC)
    theirs = BlipImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values[0]
    squashed = torch.tensor(preprocess(np.asarray(picture), foundation.preprocessing))
    ours = foundation.normalise_pixels(squashed[None])[0]
    assert (ours - theirs).abs().max() < 0.02  # one grey level: theirs resizes with torchvision, ours with Pillow


def test_the_words_given_are_left_as_they_were(foundation: Foundation, pixels: torch.Tensor) -> None:
    words = torch.randn(len(pixels), 5, WORD_WIDTH, generator=torch.Generator().manual_seed(1))
    kept, mask = words.clone(), torch.ones(len(pixels), 5, dtype=torch.int64)
    foundation.encode_words(words, mask, torch.full((len(pixels),), 4))
    foundation.match(words, mask, foundation.encode_image_states(pixels))
    torch.testing.assert_close(words, kept, rtol=0, atol=0)


def test_the_decoders_tokens_are_no_words(foundation: Foundation, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "with-decoder-tokens"
    shutil.copytree(folder, other)
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    tokenizer.save_pretrained(other)
    assert tokenizer("[DEC]").input_ids[1] == foundation.vocabulary_size - 2
    loaded = load_foundation(f"blip:{other}")
    assert loaded.tokenize("a [DEC] cat [ENC]") == foundation.tokenize("a [DEC] cat [ENC]")
    assert max(loaded.tokenize("[DEC] [ENC]")) < foundation.vocabulary_size - 2
    assert loaded.word_space() == foundation.word_space()
    assert (loaded.start_ids, loaded.end_ids) == (foundation.start_ids, foundation.end_ids)


def test_a_processor_saved_as_one_file_and_half_precision_load_alike(
    foundation: Foundation, folder: Path, tmp_path: Path, pixels: torch.Tensor
) -> None:
    other = tmp_path / "half"
    processor = BlipProcessor(BlipImageProcessor.from_pretrained(folder), BertTokenizerFast.from_pretrained(folder))
    processor.save_pretrained(other)
    build_blip().half().save_pretrained(other)
    assert not (other / "preprocessor_config.json").exists()
    loaded = load_foundation(f"blip:{other}")
    assert loaded.preprocessing == foundation.preprocessing
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_pixels(pixels), foundation.encode_pixels(pixels), rtol=0.02, atol=0.02)


def test_spaces_tell_models_and_heads_apart(foundation: Foundation, folder: Path, tmp_path: Path) -> None:
    again, other = load_foundation(f"blip:{folder}"), load_foundation(f"blip:{write_blip(tmp_path / 'b', seed=6)}")
    head = UnionHead(EMBEDDING_WIDTH)
    assert again.word_space() == foundation.word_space() != other.word_space()
    assert again.target_spaces(head) == foundation.target_spaces(head) != other.target_spaces(head)
    record = json.loads((folder / "config.json").read_text())
    changed = tmp_path / "heads"
    shutil.copytree(folder, changed)
    record["vision_config"]["num_attention_heads"] = 2  # the same tensors, read otherwise
    (changed / "config.json").write_text(json.dumps(record))
    loaded = load_foundation(f"blip:{changed}")
    assert loaded.word_space() == foundation.word_space()
    assert loaded.target_spaces(head)["original"] != foundation.target_spaces(head)["original"]
    record["text_config"]["num_attention_heads"] = 2
    (changed / "config.json").write_text(json.dumps(record))
    assert load_foundation(f"blip:{changed}").word_space() != foundation.word_space()


def test_a_model_without_the_heads_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import BlipForConditionalGeneration

    captions = tmp_path / "captions"
    shutil.copytree(folder, captions)
    (captions / "model.safetensors").unlink()
    BlipForConditionalGeneration(BlipConfig.from_pretrained(folder)).save_pretrained(captions)
    with pytest.raises(FoundationError, match=r"lack \d+ .* not BLIP for captions"):
        load_foundation(f"blip:{captions}")


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ("config.json", "there is no config.json"),
        ("model.safetensors", "cannot load the foundation .* expected a folder with config.json"),
        ("tokenizer.json", "expected tokenizer.json or vocab.txt"),
        ("preprocessor_config.json", "cannot load the foundation .*preprocessor_config.json"),
    ],
)
def test_a_missing_file_is_named(removed: str, words: str, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "less"
    shutil.copytree(folder, other)
    (other / removed).unlink()
    with pytest.raises(FoundationError, match=words):
        load_foundation(f"blip:{other}")


def test_files_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "mixed"
    shutil.copytree(folder, other)
    BlipImageProcessor(size={"height": 2 * SIDE, "width": 2 * SIDE}).save_pretrained(other)
    with pytest.raises(FoundationError, match=f"pictures of {SIDE}x{SIDE}"):
        load_foundation(f"blip:{other}")
    BlipImageProcessor.from_pretrained(folder).save_pretrained(other)
    BertTokenizerFast(vocab={f"[{i}]": i for i in range(400)} | {"[UNK]": 400}).save_pretrained(other)
    with pytest.raises(FoundationError, match="the tokenizer that the model was trained with"):
        load_foundation(f"blip:{other}")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FoundationError, match="got model_type 'bert'"):
        load_foundation(f"blip:{other}")


def test_a_name_of_the_hub_that_cannot_be_fetched_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FoundationError, match="hf download Salesforce/blip-itm-base-coco --local-dir FOLDER"):
        load_foundation(f"blip:{CHECKPOINTS[0]}")
    with pytest.raises(FoundationError, match="nearest published model: Salesforce/blip-itm-large-coco"):
        load_foundation("blip:Salesforce/blip-itm-large-coca")


def test_what_is_not_there_names_the_nearest(folder: Path) -> None:
    with pytest.raises(FoundationError, match=f"nearest: {folder}, Salesforce"):
        load_foundation(f"blip:{folder.parent / 'blib'}")
    with pytest.raises(FoundationError, match="nearest: blip:FOLDER"):
        load_foundation(f"blib:{folder}")
    with pytest.raises(FoundationError, match="brings its own weights"):
        load_foundation(f"blip:{folder}", "openai")


def test_other_foundations_have_no_matching_encoder(clip_folder: Path) -> None:
    clip = load_foundation(f"local-dir:{clip_folder}")
    with pytest.raises(FoundationError, match="has no matching encoder"):
        clip.encode_image_states(torch.zeros(1, 3, 32, 32))
    with pytest.raises(FoundationError, match="has no matching encoder"):
        clip.match(torch.zeros(1, 3, 8), torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 5, 8))


def test_the_published_base_model_has_the_parameters_that_the_page_says() -> None:
    with torch.device("meta"):
        config = BlipConfig(
            text_config=BlipTextConfig(num_attention_heads=12),
            vision_config=BlipVisionConfig(),
            image_text_hidden_size=256,
        )
        model = BlipForImageTextRetrieval(config)
    page = (Path(__file__).parents[3] / "docs" / "blip.md").read_text(encoding="utf-8")
    text = sum(value.numel() for value in model.text_encoder.parameters())
    crossing = sum(value.numel() for name, value in model.named_parameters() if "crossattention" in name)
    visual = sum(value.numel() for value in model.vision_model.parameters())
    total = sum(value.numel() for value in model.parameters())
    for count in (total, visual, text, crossing):
        assert f"{count / 1e6:.1f} M" in page

"""What a validation on triplets tells of the tokens, beside recall."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import Preprocessing
from asymcir_training import Foundation, LightEncoder, load_foundation
from asymcir_training.runs.token_log import measure_tokens
from asymcir_training.triplets.pictures import gather_gallery
from asymcir_training.triplets.triplet import PictureTriplet
from asymcir_training.triplets.validation import TripletValidation, compose_queries
from PIL import Image
from tiny_foundations import WORD_WIDTH
from torch import Tensor, nn

SPEC = Preprocessing(size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RECALLS = {"R@1", "R@5", "R@10"}
SENT = ("first token", "mean token", "reversed")


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Foundation:
    return load_foundation(f"local-dir:{clip_folder}")


@pytest.fixture(scope="module")
def validation(clip: Foundation, tmp_path_factory: pytest.TempPathFactory) -> TripletValidation:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(24)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32)).save(path)
    triplets = [
        PictureTriplet(reference=paths[number], modifier=("is red", "")[number % 2], target=paths[number - 1])
        for number in range(12)
    ]
    gallery = gather_gallery(triplets, [folder])
    features = np.random.default_rng(1).normal(size=(len(gallery.paths), clip.embedding_width)).astype(np.float32)
    return TripletValidation(
        clip,
        triplets,
        gallery=gallery,
        features=features,
        kept=range(len(features)),
        spec=SPEC,
        device=torch.device("cpu"),
    )


def _student(sentence_length: int = 4) -> LightEncoder:
    torch.manual_seed(0)
    return LightEncoder(
        "test_efficientnet", sentence_length=sentence_length, word_width=WORD_WIDTH, width=32, preprocessing=SPEC
    ).eval()


class Changed(nn.Module):
    """An encoder that sends something else than its tokens."""

    def __init__(self, encoder: LightEncoder, name: str) -> None:
        super().__init__()
        self.encoder, self.name = encoder, name

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(pixels)
        if self.name == "first token":
            return tokens[:, :1]
        if self.name == "reversed":
            return tokens.flip(1)
        return tokens.mean(dim=1, keepdim=True).repeat(1, tokens.shape[1], 1)


def test_tokens_and_maps_are_measured_on_the_references(validation: TripletValidation) -> None:
    student = _student()
    found = validation(student)
    assert found.keys() == RECALLS | {f"R@10 {name}" for name in SENT} | {
        "token_cosine",
        "effective_rank",
        "centred_rank",
        "attention_overlap",
    }
    with torch.no_grad():
        pixels = (torch.from_numpy(validation._pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        expected = measure_tokens(*student.forward_with_maps(pixels))
    assert expected is not None
    measured = [expected.cosine, expected.effective_rank, expected.centred_rank, expected.overlap]
    names = ("token_cosine", "effective_rank", "centred_rank", "attention_overlap")
    np.testing.assert_allclose([found[name] for name in names], measured, atol=1e-4)


@pytest.mark.parametrize("name", SENT)
def test_what_is_sent_in_place_of_the_tokens_is_ranked_alike(validation: TripletValidation, name: str) -> None:
    student = _student()
    assert validation(student)[f"R@10 {name}"] == validation(Changed(student, name))["R@10"]


def test_a_single_token_is_not_compared(validation: TripletValidation) -> None:
    assert validation(_student(sentence_length=1)).keys() == RECALLS


def test_an_encoder_without_maps_has_no_overlap(validation: TripletValidation) -> None:
    found = validation(Changed(_student(), "reversed"))
    assert "attention_overlap" not in found and "centred_rank" in found


def test_tokens_that_are_one_are_warned_of_once(
    validation: TripletValidation, caplog: pytest.LogCaptureFixture
) -> None:
    one = Changed(_student(), "mean token")
    caplog.clear()
    validation._warned = False
    assert validation(one)["effective_rank"] == pytest.approx(1.0, abs=1e-4)
    validation(one)
    assert caplog.text.count("validation: the 4 tokens of a picture are nearly one") == 1


def test_composed_queries_are_those_of_the_tokens(clip: Foundation) -> None:
    student, asked = _student(), np.array([2, 0, 1])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = compose_queries(
        student, clip, pixels, asked, ["is red", "", "is blue"], spec=SPEC, device=torch.device("cpu")
    )
    with torch.no_grad():
        tokens = student((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
        expected = clip.compose_query(tokens[asked], ["is red", "", "is blue"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

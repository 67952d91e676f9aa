"""Rounding in training: the values, the gradients, and what is left alone."""

import pytest
import torch
from asymcir_training.models.int8_rounding import round_activation, round_weight, rounded_to_int8
from torch import Tensor, nn


def test_weights_have_a_scale_per_output_channel_and_pass_their_gradients() -> None:
    weight = torch.tensor([[1.27, 0.004, -0.0151], [0.0127, 0.00014, -0.0127], [0.0, 0.0, 0.0]], requires_grad=True)
    rounded = round_weight(weight)
    expected = torch.tensor([[1.27, 0.0, -0.02], [0.0127, 0.0001, -0.0127], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(rounded, expected, rtol=1e-5, atol=1e-7)
    (rounded * torch.arange(9.0).view(3, 3)).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(weight.grad, torch.arange(9.0).view(3, 3))


@pytest.mark.parametrize("values", [torch.linspace(-1.0, 4.1, 77), torch.linspace(0.5, 6.0, 50), -torch.rand(9)])
def test_activations_have_256_steps_and_zero_is_one_of_them(values: Tensor) -> None:
    rounded = round_activation(values)
    step = (values.max().clamp_min(0.0) - values.min().clamp_max(0.0)) / 255
    assert (rounded - values).abs().max() <= 0.51 * step
    steps = rounded / step
    torch.testing.assert_close(steps, steps.round(), rtol=0.0, atol=2e-3)
    assert torch.equal(round_activation(torch.zeros(3)), torch.zeros(3))


def test_bfloat16_stays_bfloat16() -> None:
    assert round_activation(torch.rand(4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert round_weight(torch.rand(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_first_convolutions_and_sums_of_vectors_stay_float() -> None:
    torch.manual_seed(0)
    pixels, vectors = torch.rand(2, 3, 9, 9), torch.rand(2, 4)
    first, depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
    plain, linear = nn.Conv2d(8, 8, 1), nn.Linear(4, 4)
    with torch.no_grad():
        stem = depthwise(first(pixels))
        expected = {"stem": stem, "plain": plain(stem), "sum": stem + stem.flip(0), "linear": linear(vectors)}
        for _ in range(2):  # every pass tells its first convolutions anew
            with rounded_to_int8():
                found = depthwise(first(pixels))
                again = {"plain": plain(stem), "sum": stem + stem.flip(0), "linear": linear(vectors)}
                assert torch.equal(vectors + vectors.flip(0), vectors + vectors.flip(0))
                assert torch.equal(stem + 1.0, stem.add(1.0))
            assert torch.equal(found, expected["stem"])
            for name, value in again.items():
                assert not torch.equal(value, expected[name]), name
                torch.testing.assert_close(value, expected[name], rtol=0.0, atol=0.05)
        with rounded_to_int8(active=False):
            assert torch.equal(plain(stem), expected["plain"])


def test_channel_statistics_and_broadcast_shifts_stay_float() -> None:
    maps, shifts = torch.rand(2, 4, 5, 5), torch.rand(2, 4, 1, 1)
    with rounded_to_int8():
        found = maps + shifts, shifts + shifts.flip(0)
    assert torch.equal(found[0], maps + shifts) and torch.equal(found[1], shifts + shifts.flip(0))


@pytest.mark.parametrize("training", [True, False])
def test_attention_and_linear_layers_on_tokens_are_rounded_and_trained(training: bool) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 6, 16)
    attention, linear = nn.MultiheadAttention(16, 4, batch_first=True).train(training), nn.Linear(16, 8)
    with rounded_to_int8():
        attended = attention(tokens, tokens, tokens, need_weights=False)[0]
        transformed = linear(tokens)
    exact = attention(tokens, tokens, tokens, need_weights=False)[0]
    for found, expected in ((attended, exact), (transformed, linear(tokens))):
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.05)
    (attended.square().sum() + transformed.square().sum()).backward()  # type: ignore[no-untyped-call]
    for parameter in (attention.in_proj_weight, attention.out_proj.weight, linear.weight, linear.bias):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0.0

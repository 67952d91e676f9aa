import pytest
import torch
from asymcir_training import UnionHead
from asymcir_training.models.union_head import DROPOUT, FEED_FORWARD_WIDTH, HEAD_WIDTH, LAYERS, T5Stack
from torch.nn import functional


def test_stack_equals_the_t5_encoder_of_transformers() -> None:
    from transformers import T5Config, T5EncoderModel

    width, heads = 96, 8
    config = T5Config(
        vocab_size=1,
        d_model=width,
        d_kv=HEAD_WIDTH,
        d_ff=FEED_FORWARD_WIDTH,
        num_layers=LAYERS,
        num_heads=heads,
        dropout_rate=DROPOUT,
        feed_forward_proj="relu",
    )
    torch.manual_seed(0)
    theirs, ours = T5EncoderModel(config).eval(), T5Stack(width, heads).eval()
    encoder = theirs.encoder
    with torch.no_grad():
        for block, layer in zip(ours.blocks, encoder.block, strict=True):
            attention, dense = layer.layer[0], layer.layer[1]
            for name, part in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
                getattr(block, name).weight.copy_(getattr(attention.SelfAttention, part).weight)
            block.attention_norm.weight.copy_(attention.layer_norm.weight)
            block.expand.weight.copy_(dense.DenseReluDense.wi.weight)
            block.contract.weight.copy_(dense.DenseReluDense.wo.weight)
            block.feed_forward_norm.weight.copy_(dense.layer_norm.weight)
        ours.relative_bias.weight.copy_(encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
        ours.final_norm.weight.copy_(encoder.final_layer_norm.weight)
        x = torch.randn(3, 40, width)  # long enough for the logarithmic buckets
        expected = theirs(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "millions"), [(256, 7.1), (512, 15.7), (768, 29.1)])
def test_sizes_are_those_of_the_public_code(width: int, millions: float) -> None:
    count = sum(parameter.numel() for parameter in UnionHead(width).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_target_is_the_gated_mixture_and_the_gate_is_unbounded() -> None:
    torch.manual_seed(0)
    head = UnionHead(64).eval()
    image, text = torch.randn(5, 64), torch.randn(5, 64)
    target, gate = head(image, text)
    expected = functional.normalize(gate[:, None] * image + (1 - gate[:, None]) * text, dim=-1)
    torch.testing.assert_close(target, expected)
    with torch.no_grad():
        head.gate[-1].bias.fill_(3.0)
    assert head(image, text)[1].min() > 1.0

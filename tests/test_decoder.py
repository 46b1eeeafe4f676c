import pytest
import torch
from torch import nn

from fastinst import create_model, ops
from fastinst.attention import Attention
from fastinst.heads import PredictionHead


@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_multi_head_attention_with_its_residual_and_norm(masked):
    attention = Attention(12, 3).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    other = nn.MultiheadAttention(12, 3, batch_first=True).double()
    other.load_state_dict({k: v for k, v in attention.state_dict().items() if "norm" not in k})
    x, x_position = torch.randn(2, 2, 7, 12, dtype=torch.float64)
    memory, memory_position = torch.randn(2, 2, 37, 12, dtype=torch.float64)
    attend = torch.rand(2, 7, 37) < 0.5
    forbidden = ~attend.repeat_interleave(3, dim=0)
    read = attention(x, x_position, memory, memory_position, attend if masked else None)
    expected, _ = other(
        x + x_position, memory + memory_position, memory, attn_mask=forbidden if masked else None
    )
    torch.testing.assert_close(read, attention.norm(x + expected))


def test_masks_are_dot_products_with_the_mapped_pixels():
    head = PredictionHead(12, 4).double()
    nn.init.normal_(head.pixel_map.bias)
    queries = torch.randn(2, 5, 12, dtype=torch.float64)
    pixels = torch.randn(2, 37, 12, dtype=torch.float64)
    output = head(queries, pixels)
    embeddings = head.mask_mlp(head.norm(queries))
    torch.testing.assert_close(output.masks(), embeddings @ head.pixel_map(pixels).mT)
    torch.testing.assert_close(output.logits, head.class_mlp(head.norm(queries)))


@pytest.mark.parametrize("probability", [0.01, 0.2])
def test_masks_start_at_a_probability_for_all_queries_and_pixels(probability):
    head = PredictionHead(256, 4)
    queries, pixels = torch.randn(2, 100, 256), torch.randn(2, 400, 256).relu()
    assert 0.3 < head(queries, pixels).masks().sigmoid().median() < 0.7
    head.start_masks_at(probability)
    started = head(queries, pixels).masks()
    assert 0.4 * probability < started.sigmoid().median() < 2 * probability
    assert started.std() < 1.5 and started.max() < 3


def test_the_attention_mask_is_the_sign_of_the_mask_logits():
    head = PredictionHead(12, 4).double()
    nn.init.normal_(head.pixel_map.bias)
    queries = torch.randn(2, 5, 12, dtype=torch.float64)
    pixels = torch.randn(2, 37, 12, dtype=torch.float64)
    masks = head(queries, pixels).masks()
    bits = head.attention_mask(queries, pixels)
    assert torch.equal(ops.unpack_bits(bits, 37), masks >= 0)
    assert 0.2 < (masks >= 0).double().mean() < 0.8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inference_under_autocast(dtype):
    model = create_model("fastinst-d3-r50-640", hidden_dim=64, num_heads=2, ffn_dim=32).eval()
    batch, _ = model.preprocess([torch.randint(256, (3, 64, 96), dtype=torch.uint8)])
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        outputs = model(batch)
    assert outputs["pred_masks"].isfinite().all() and outputs["pred_logits"].isfinite().all()

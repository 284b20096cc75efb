import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compresskd.models.vit import Attention, PatchEmbed, VisionTransformer

SMALL = {"width": 12, "depth": 2, "num_heads": 3, "num_classes": 5, "input_shape": [3, 8, 12]}


def test_attention_equals_the_formula():
    torch.manual_seed(0)
    attention = Attention(6, num_heads=2).double()
    x_BND = torch.randn(2, 5, 6, dtype=torch.float64)
    q, k, v = (x_BND @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        weights = (q[..., head] @ k[..., head].mT / 3**0.5).softmax(dim=-1)
        heads.append(weights @ v[..., head])
    expected = F.linear(torch.cat(heads, dim=-1), attention.proj.weight, attention.proj.bias)
    torch.testing.assert_close(attention(x_BND), expected, rtol=1e-10, atol=1e-12)


def test_patches_are_embedded_row_by_row():
    torch.manual_seed(0)
    embed = PatchEmbed(2, 3, patch_size=4).double()
    x_BCHW = torch.randn(1, 2, 8, 12, dtype=torch.float64)
    tokens = embed(x_BCHW)
    assert tokens.shape == (1, 6, 3)
    patch = x_BCHW[0, :, 4:8, 4:8]  # second row, second column: token 1 * 3 + 1
    expected = embed.proj.weight.flatten(1) @ patch.flatten() + embed.proj.bias
    torch.testing.assert_close(tokens[0, 4], expected, rtol=1e-10, atol=1e-12)


def test_every_projection_is_a_linear_layer_named_as_in_timm():
    model = VisionTransformer(patch_size=4, **SMALL)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    of_a_block = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert linear == [f"blocks.{i}.{name}" for i in range(2) for name in of_a_block] + ["head"]
    others = {name for name in model.state_dict() if not name.startswith("blocks")}
    assert others == {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


def test_a_replaced_layer_is_the_one_that_runs():
    torch.manual_seed(0)
    model = VisionTransformer(patch_size=4, **SMALL).eval()
    x_BCHW = torch.randn(2, 3, 8, 12)
    model.blocks[0].attn.qkv = nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 36))
    before = model(x_BCHW)
    nn.init.normal_(model.blocks[0].attn.qkv[0].weight)
    assert not torch.allclose(model(x_BCHW), before)


def test_position_matters():
    torch.manual_seed(0)
    model = VisionTransformer(patch_size=4, **SMALL).eval()
    x_BCHW = torch.randn(1, 3, 8, 12)
    assert not torch.allclose(model(x_BCHW), model(x_BCHW.flip(2)), atol=1e-6)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = VisionTransformer(patch_size=4, dropout=0.5, **SMALL)
    x_BCHW = torch.randn(2, 3, 8, 12)
    assert not torch.equal(model(x_BCHW), model(x_BCHW))
    model.eval()
    torch.testing.assert_close(model(x_BCHW), model(x_BCHW), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch_size": 5}, "patch_size: got 5, expected"),
        ({"patch_size": 16}, "patch_size: got 16, expected"),
        ({"patch_size": 0}, "patch_size: got 0, expected >= 1"),
        ({"num_heads": 5}, "width: got 12, expected a multiple of num_heads=5"),
        ({"depth": 0}, "depth: got 0, expected >= 1"),
        ({"mlp_ratio": 0}, "mlp_ratio: got 0, expected > 0"),
        ({"dropout": -0.1}, r"dropout: got -0\.1, expected >= 0"),
        ({"input_shape": [64]}, r"needs images, .* got \[64\]"),
    ],
)
def test_arguments_that_cannot_be_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        VisionTransformer(**{"patch_size": 4, **SMALL, **options})

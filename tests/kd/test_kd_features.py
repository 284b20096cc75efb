import numpy as np
import pytest
import torch
import torch.nn.functional as F
from refusals import says

from compresskd.kd.extent import aligned, pooled
from compresskd.kd.features import RKD, AttentionTransfer, Hint, SimilarityPreserving
from compresskd.tasks import ModelOutputs

B = 5
SHAPES = {"vector": (B, 8), "tokens": (B, 6, 8), "image": (B, 8, 4, 4)}
TARGETS = torch.zeros(B, dtype=torch.int64)


def random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss(term, student, teacher, name="layer"):
    logits = torch.zeros(B, 3)
    return term(ModelOutputs(logits, {name: student}), ModelOutputs(logits, {name: teacher}), TARGETS)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cls", [Hint, AttentionTransfer, SimilarityPreserving, RKD])
def test_zero_on_equal_features(cls, shape):
    if cls is AttentionTransfer and len(shape) == 2:
        return  # Refused when the objective is bound: see below.
    feature = random(shape, 0)
    assert loss(cls(), feature, feature.clone()).item() == pytest.approx(0, abs=1e-6)
    assert loss(cls(), feature, random(shape, 1)).item() > 1e-4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_hint_against_numpy(shape):
    s, t = random(shape, 0), random(shape, 1)
    expected = ((s.double().numpy() - t.double().numpy()) ** 2).mean()
    assert loss(Hint(), s, t).item() == pytest.approx(expected, rel=1e-5)


def attention_oracle(x):
    maps = (x**2).mean(axis=1).reshape(B, -1) if x.ndim == 4 else (x**2).mean(axis=2)
    return maps / np.sqrt((maps**2).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("shape", [SHAPES["tokens"], SHAPES["image"]])
def test_attention_transfer_against_numpy(shape):
    s, t = random(shape, 0), random(shape, 1)
    expected = ((attention_oracle(s.double().numpy()) - attention_oracle(t.double().numpy())) ** 2).mean()
    assert loss(AttentionTransfer(), s, t).item() == pytest.approx(expected, rel=1e-4)


def test_attention_transfer_ignores_channel_counts_and_scale():
    s = random((B, 3, 4, 4), 0)
    wider = 7 * s.repeat(1, 4, 1, 1)
    assert loss(AttentionTransfer(), s, wider).item() == pytest.approx(0, abs=1e-10)


def test_attention_transfer_says_why_vectors_do_not_do():
    assert AttentionTransfer().fault(random((B, 8), 0), random((B, 8), 1)) == (
        "attention transfer expects [B, C, H, W] or [B, N, C], got [5, 8]"
    )
    assert AttentionTransfer().fault(random((B, 8, 2, 2), 0), random((B, 4, 8), 1)) is None


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_similarity_preserving_against_numpy(shape):
    s, t = random(shape, 0), random((B, 11), 1)
    rows = []
    for x in (s, t):
        q = x.double().numpy().reshape(B, -1)
        g = q @ q.T
        rows.append(g / np.linalg.norm(g, axis=1, keepdims=True))
    expected = ((rows[0] - rows[1]) ** 2).sum() / B**2
    assert loss(SimilarityPreserving(), s, t).item() == pytest.approx(expected, rel=1e-4)


def huber(x):
    return np.where(np.abs(x) <= 1, 0.5 * x**2, np.abs(x) - 0.5)


def distance_oracle(x):
    d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return d / d[~np.eye(len(x), dtype=bool)].mean()


def angle_oracle(x):
    angles = np.zeros((B, B, B))
    for j in range(B):
        for i in range(B):
            for k in range(B):
                if j not in (i, k):
                    u, v = x[i] - x[j], x[k] - x[j]
                    angles[j, i, k] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    return angles


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rkd_against_numpy(shape, weights):
    s, t = random(shape, 0), 3 * random((B, 5), 1)
    a, b = pooled(s).double().numpy(), t.double().numpy()
    expected = weights[0] * huber(distance_oracle(a) - distance_oracle(b)).mean()
    expected += weights[1] * huber(angle_oracle(a) - angle_oracle(b)).mean()
    term = RKD(distance_weight=weights[0], angle_weight=weights[1])
    assert loss(term, s, t).item() == pytest.approx(expected, rel=1e-4)


def test_rkd_ignores_rotation_scale_and_shift():
    s = random((B, 8), 0)
    rotation = torch.linalg.qr(random((8, 8), 2))[0]
    assert loss(RKD(), s, 5 * s @ rotation + 3).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("cls", [Hint, SimilarityPreserving, RKD])
def test_samples_that_coincide_have_finite_gradients(cls):
    student = torch.zeros(B, 8, requires_grad=True)
    loss(cls(), student, random((B, 8), 1)).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("cls", [Hint, AttentionTransfer, SimilarityPreserving, RKD])
def test_low_precision_features_are_computed_in_float32(cls):
    s, t = random(SHAPES["image"], 0).bfloat16(), random(SHAPES["image"], 1).bfloat16()
    got = loss(cls(), s, t)
    assert got.dtype == torch.float32
    assert got.item() == loss(cls(), s.float(), t.float()).item()


@pytest.mark.parametrize("cls", [Hint, AttentionTransfer, SimilarityPreserving, RKD])
def test_no_gradient_reaches_the_teacher(cls):
    s, t = random(SHAPES["image"], 0).requires_grad_(), random(SHAPES["image"], 1).requires_grad_()
    loss(cls(), s, t).backward()
    assert s.grad.abs().sum() > 0
    assert t.grad is None


def test_losses_are_summed_over_pairs():
    s, t = random(SHAPES["image"], 0), random(SHAPES["image"], 1)
    logits = torch.zeros(B, 3)
    both = Hint()(ModelOutputs(logits, {"a": s, "b": t}), ModelOutputs(logits, {"a": t, "b": s}), TARGETS)
    assert both.item() == pytest.approx(2 * loss(Hint(), s, t).item(), rel=1e-6)


def test_features_of_other_names_are_refused():
    logits = torch.zeros(B, 3)
    with pytest.raises(ValueError, match=says("Hint", "Objective.bind")):
        Hint()(ModelOutputs(logits, {"a": logits}), ModelOutputs(logits, {"b": logits}), TARGETS)
    with pytest.raises(ValueError, match="same names"):
        Hint()(ModelOutputs(logits), ModelOutputs(logits), TARGETS)


def test_aligned_pools_to_the_smaller_extent():
    large, small = random((B, 3, 8, 8), 0), random((B, 7, 4, 2), 1)
    a, b = aligned(large, small)
    torch.testing.assert_close(a, F.avg_pool2d(large, (2, 4)))
    assert b is small
    a, b = aligned(random((B, 6, 3), 0), random((B, 3, 7), 1))
    assert a.shape == (B, 3, 3)
    assert b.shape == (B, 3, 7)


def test_aligned_reads_an_image_beside_tokens_as_tokens():
    image, tokens = random((B, 3, 2, 2), 0), random((B, 4, 7), 1)
    a, b = aligned(image, tokens)
    torch.testing.assert_close(a[:, 2], image[:, :, 1, 0])
    assert b is tokens


def test_aligned_averages_beside_a_vector():
    image, vector = random((B, 3, 2, 2), 0), random((B, 7), 1)
    a, b = aligned(image, vector)
    torch.testing.assert_close(a, image.mean(dim=(2, 3)))
    assert b is vector


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"match": "same"}, "match: got 'same', expected same_name, middle, last"),
        (
            {"match": "same_name", "include": "layer1"},
            r"include: got 'layer1', expected a list: \[a, b\]",
        ),
        ({"match": "last", "include": ["layer1"]}, r"include: got \['layer1'\], expected"),
        ({"pairs": {"a": "b"}, "match": "same_name", "include": ["a"]}, r"include: got \['a'\], expected"),
        ({"weight": -1.0}, r"weight: got -1\.0, expected >= 0"),
    ],
)
@pytest.mark.parametrize("cls", [Hint, AttentionTransfer, SimilarityPreserving, RKD])
def test_impossible_options(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


def test_rkd_weights_are_checked():
    with pytest.raises(ValueError, match=r"distance_weight: got -1\.0, expected >= 0"):
        RKD(distance_weight=-1.0)
    with pytest.raises(ValueError, match=r"angle_weight"):
        RKD(angle_weight=-1.0)

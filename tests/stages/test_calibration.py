"""Statistics of layers against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from text_models import TextClassifier
from torch import nn

from compresskd import tt
from compresskd.api.functions import compress
from compresskd.api.samples import data_of
from compresskd.compression.calibration import calibrate
from compresskd.compression.noise import likelihood_gradient
from compresskd.compression.weighting import INPUT, TWO_SIDED, combined, weighting_of
from compresskd.data import Source, assemble
from compresskd.data.draw import draw
from compresskd.data.synthetic import synthetic
from compresskd.quant.activation import ActivationQuant, quantize_input
from compresskd.quant.activation import calibrate as calibrate_activations
from compresskd.tasks import Batch, Classification

CLASSIFICATION = Classification()


def make_data(shape):
    return synthetic(
        name="synthetic", num_train=48, num_test=16, separation=1.0, data_seed=0, num_classes=3, input_shape=shape,
        validation_fraction=None, validation_count=12, split_seed=0, augmentation=None, augmentation_bank=None,
    )  # fmt: skip


def test_covariance_of_a_linear_layer_is_the_second_moment():
    data = make_data((6,))
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    found = calibrate(model, ["0", "2"], data.train, num_samples=10_000, seed=0)
    x = next(iter(data.train.batches(10_000))).inputs
    torch.testing.assert_close(found["0"].covariance, x.T @ x / len(x))
    hidden = model[1](model[0](x)).detach()
    torch.testing.assert_close(found["2"].covariance, hidden.T @ hidden / len(x))


def test_covariance_of_a_convolution_is_that_of_its_patches():
    data = make_data((2, 6, 6))
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(36, 3))
    found = calibrate(model, ["0"], data.train, num_samples=10_000, seed=0)
    x = next(iter(data.train.batches(10_000))).inputs
    patches = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 18)
    torch.testing.assert_close(found["0"].covariance, patches.T @ patches / len(patches))


def test_sensitivity_of_the_last_layer_is_one():
    """An error of the logits is the error of the logits."""
    data = make_data((6,))
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    torch.manual_seed(0)
    found = calibrate(model, ["2"], data.train, num_samples=10_000, seed=1)
    assert 0.5 < found["2"].sensitivity < 1.6  # |v|^2 / K over some forty draws


class TestTokens:
    """Ids have no gradient; a tied table is an embedding and a matrix."""

    def calibrated(self):
        inputs = torch.randint(0, 40, (32, 6), generator=torch.Generator().manual_seed(1))
        data = data_of(inputs)
        model = TokenModel()
        return model, data, calibrate(model, ["table", "inner", "head"], data.train, num_samples=32, seed=0)

    def test_sensitivity_is_that_of_each_layer_and_the_model_stays_as_it_was(self):
        model, data, found = self.calibrated()
        assert found["table"].covariance is None
        assert all(each.sensitivity > 0 for each in found.values())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        x = model.table(next(iter(data.train.batches(32))).inputs).detach().flatten(0, 1)
        torch.testing.assert_close(found["inner"].covariance, x.T @ x / len(x))

    @torch.no_grad()
    def test_errors_of_the_table_weigh_as_they_show_in_the_logits(self):
        """By the definition: a small random change of the table, in all its uses of one kind."""
        with torch.enable_grad():
            model, data, found = self.calibrated()
        ids = next(iter(data.train.batches(32))).inputs
        weighting = weighting_of(model.table, found["table"], INPUT)
        before, changes, expected = model(ids), [], []
        for seed in range(20):
            change = 1e-3 * torch.randn(40, 8, generator=torch.Generator().manual_seed(seed))
            rows = model.table(ids) + change[ids]
            after = F.linear(torch.tanh(model.inner(rows)), model.head.weight)
            changes.append(float((after - before).square().sum() / len(ids)))
            expected.append(weighting.weight * float((weighting.outputs[:, None] * change.square()).sum()))
        assert 0.6 < sum(expected) / sum(changes) < 1.6

    def test_ranks_of_a_tied_table_by_outputs(self):
        model, data, _ = self.calibrated()
        small = compress(
            model, next(iter(data.train.batches(32))).inputs, rank=4, whitening="input", method="svd"
        )
        assert isinstance(small.table, tt.TTEmbedding)
        assert small.table.cores is small.head.cores

    def test_two_sided_ranks_of_a_tied_table(self):
        model, data, _ = self.calibrated()
        small = compress(
            model, next(iter(data.train.batches(32))).inputs, rank=4, whitening="two_sided", method="svd"
        )
        assert small.table.cores is small.head.cores

    def test_rows_of_a_table_count_as_often_as_they_are_asked_for(self):
        _, data, found = self.calibrated()
        ids = next(iter(data.train.batches(32))).inputs
        counts = torch.bincount(ids.flatten(), minlength=40) + 1.0
        torch.testing.assert_close(found["table"].frequency, counts / counts.sum())

    def test_both_uses_of_a_tied_table_add_up(self):
        """The Kronecker product has the trace, and the partial traces, of the sum of both."""
        model, data, _ = self.calibrated()
        names, task = ["table", "head"], CLASSIFICATION
        found = calibrate(model, names, data.train, num_samples=32, seed=0, task=task)
        parts = [weighting_of(getattr(model, name), found[name], TWO_SIDED) for name in names]
        whole = combined(parts, (40, 8))
        trace = sum(p.weight * diagonal(p.outputs).sum() * diagonal(p.inputs).sum() for p in parts)
        inputs = sum(p.weight * diagonal(p.outputs).sum() * p.inputs for p in parts)
        assert whole.weight == 1.0
        torch.testing.assert_close(diagonal(whole.outputs).sum() * diagonal(whole.inputs).sum(), trace)
        torch.testing.assert_close(diagonal(whole.outputs).sum() * whole.inputs, inputs)


def diagonal(covariance):
    return covariance if covariance.ndim == 1 else covariance.diagonal()


class TokenModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.inner(self.table(ids))))


def second_moment(asks, logits, num_draws=20_000):
    gradients = likelihood_gradient(asks, logits.expand(num_draws, -1), torch.Generator().manual_seed(0))
    return gradients.T @ gradients / num_draws


def test_gradients_at_drawn_targets_have_the_fisher_matrix_as_their_second_moment():
    logits = torch.tensor([0.5, -1.0, 0.2])
    p, q = logits.softmax(0), logits.sigmoid()
    expected = {
        "classes": torch.diag(p) - torch.outer(p, p),
        "labels": torch.diag(q * (1 - q)),
        "values": torch.eye(3),
    }
    for asks, fisher in expected.items():
        torch.testing.assert_close(second_moment(asks, logits), fisher, atol=0.03, rtol=0.0)


def test_gradients_of_an_inner_layer_are_those_of_the_loss_of_one_sample():
    """With one logit row a sample, G of the first layer is E[W^T D (diag p - p p^T) D W] over the samples."""
    data = make_data((6,))
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    found = [
        calibrate(model, ["0"], data.train, num_samples=10_000, seed=seed, task=CLASSIFICATION)["0"].gradients
        for seed in range(60)
    ]
    x = next(iter(data.train.batches(10_000))).inputs
    hidden = model[1](model[0](x)).detach()
    p = model[2](hidden).softmax(1).detach()
    jacobian = model[2].weight.detach() * (1 - hidden.square())[:, None, :]
    fisher = torch.einsum(
        "bki,bkl,blj->ij", jacobian, torch.diag_embed(p) - p[:, :, None] * p[:, None, :], jacobian
    )
    error = (sum(found) / len(found) - fisher / len(x)).norm() / (fisher / len(x)).norm()
    assert error < 0.1


def test_two_sided_cost_is_half_of_what_the_loss_rises_by():
    """KL(p || p') of a small change of a layer's weight, over samples of one row each."""
    torch.manual_seed(0)
    data = make_data((6,))
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).requires_grad_(False)
    x = next(iter(data.train.batches(10_000))).inputs
    found = calibrate(model, ["2"], data.train, num_samples=10_000, seed=0, task=CLASSIFICATION)["2"]
    weighting = weighting_of(model[2], found, TWO_SIDED)
    before, changes, costs = model(x).log_softmax(1), [], []
    for _ in range(30):
        change = 1e-2 * torch.randn(3, 5)
        model[2].weight += change
        changes.append(float((before.exp() * (before - model(x).log_softmax(1))).sum(1).mean()))
        model[2].weight -= change
        costs.append(
            0.5 * weighting.weight * float((weighting.outputs @ change @ weighting.inputs * change).sum())
        )
    assert sum(costs) == pytest.approx(sum(changes), rel=0.5)  # by two factors, from one draw of 36 targets


def test_padding_counts_for_nothing():
    ids = torch.randint(1, 30, (24, 7), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(24) % 7 + 1
    mask = (torch.arange(7) < lengths[:, None]).long()
    split = TextLike(ids, mask)
    model = TextClassifier(3, vocabulary=30)
    found = calibrate(model, ["table", "hidden"], split, num_samples=24, seed=0, task=CLASSIFICATION)
    rows = model.table(ids)[mask.bool()].detach()
    torch.testing.assert_close(found["hidden"].covariance, rows.T @ rows / len(rows))
    assert found["hidden"].num_rows == found["hidden"].num_gradients == int(mask.sum())
    assert found["hidden"].positions == pytest.approx(float(mask.sum()) / 24)
    counts = torch.bincount(ids[mask.bool()], minlength=30) + 1.0
    torch.testing.assert_close(found["table"].frequency, counts / counts.sum())


class TextLike:
    """Texts in one batch, as a split gives them."""

    name, strata, fingerprint = "train", None, ""

    def __init__(self, ids, mask):
        self.ids, self.mask = ids, mask

    def __len__(self):
        return len(self.ids)

    def take(self, positions, fingerprint):
        return TextLike(self.ids[positions], self.mask[positions])

    def batches(self, batch_size):
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            inputs = {"input_ids": self.ids[part], "attention_mask": self.mask[part]}
            yield Batch(inputs, torch.zeros(len(inputs["input_ids"]), dtype=torch.long), torch.arange(1), 0)

    every_sample = batches


class OtherIds(TextClassifier):
    """Rare tokens, of the upper half of the ids, are looked up as others are."""

    def forward(self, input_ids, attention_mask):
        return super().forward(torch.where(input_ids < 15, input_ids, input_ids - 15), attention_mask)


class OfShorterTable(TextClassifier):
    """Ids are clamped to a table of 15 rows."""

    def __init__(self):
        super().__init__(3, vocabulary=15)

    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids.clamp(max=14), attention_mask)


def test_tokens_are_counted_in_all_texts_where_few_are_run_through_the_model():
    ids = torch.randint(1, 30, (200, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < (torch.arange(200) % 7 + 1)[:, None]).long()
    model, split = TextClassifier(3, vocabulary=30), TextLike(ids, mask)
    found = calibrate(model, ["table", "hidden"], split, num_samples=24, seed=0, task=CLASSIFICATION)
    counts = torch.bincount(ids[mask.bool()], minlength=30) + 1.0
    torch.testing.assert_close(found["table"].frequency, counts / counts.sum())
    assert found["hidden"].num_rows < mask.sum()
    assert found["table"].positions == found["hidden"].positions


@pytest.mark.parametrize("model", [OtherIds(3, vocabulary=30), OfShorterTable()], ids=["other", "clamped"])
def test_of_ids_that_the_model_makes_those_that_were_seen_count(model):
    common = torch.randint(1, 15, (400, 7), generator=torch.Generator().manual_seed(0))
    rare = torch.where(torch.rand(400, 7, generator=torch.Generator().manual_seed(1)) < 0.02, 20, common)
    split = TextLike(rare, torch.ones(400, 7, dtype=torch.long))
    found = calibrate(model, ["table"], split, num_samples=24, seed=0, task=CLASSIFICATION)
    V = model.table.num_embeddings
    assert found["table"].frequency.shape == (V,)
    assert float(found["table"].frequency.min()) == pytest.approx(1 / (24 * 7 + V))  # of the 24 alone


def test_an_id_outside_of_the_table_that_no_drawn_text_has_leaves_what_was_seen():
    ids = torch.randint(1, 15, (400, 7), generator=torch.Generator().manual_seed(0))
    drawn = draw(TextLike(ids, torch.ones_like(ids)), 24, seed=0)
    (batch,) = drawn.batches(24)
    seen = {tuple(row) for row in batch.inputs["input_ids"].tolist()}
    left_out = next(k for k in range(400) if tuple(ids[k].tolist()) not in seen)
    ids[left_out, 0] = 20
    model = OfShorterTable()
    found = calibrate(
        model, ["table"], TextLike(ids, torch.ones_like(ids)), num_samples=24, seed=0, task=CLASSIFICATION
    )
    counts = torch.bincount(batch.inputs["input_ids"].flatten(), minlength=15) + 1.0
    torch.testing.assert_close(found["table"].frequency, counts / counts.sum())


def test_many_logits_make_small_batches(monkeypatch):
    monkeypatch.setattr("compresskd.compression.calibration.MAX_LOGITS", 12)
    sizes, data = [], make_data((6,))
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    calibrate(model, ["0"], data.train, num_samples=10, seed=0)
    assert sizes == [1, 4, 4, 2]


def test_nan_is_refused():
    data = make_data((6,))
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].bias[0] = float("nan")
    with pytest.raises(ValueError, match="calibration: NaN or infinity among the inputs of 2"):
        calibrate(model, ["0", "2"], data.train, num_samples=10, seed=0)


def test_model_is_left_as_it_was():
    data = make_data((6,))
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 3)).train().requires_grad_(False)
    calibrate(model, ["0"], data.train, num_samples=16, seed=0)
    assert model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not model[0]._forward_hooks


def test_factorized_layers_see_the_inputs_of_dense_ones():
    data = make_data((2, 6, 6))
    dense = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding="same"), nn.Flatten(), nn.Linear(288, 16), nn.Linear(16, 3)
    )
    factorized = nn.Sequential(*dense)
    factorized[0], factorized[2] = tt.factorize(dense[0], rank=4), tt.factorize(dense[2], rank=4)
    ours, theirs = (
        calibrate(model, ["0", "2"], data.train, num_samples=48, seed=0) for model in (dense, factorized)
    )
    torch.testing.assert_close(ours["0"].covariance, theirs["0"].covariance)
    assert theirs["2"].covariance.shape == (288, 288)


def test_power_is_the_squared_norm_of_the_output_at_one_position():
    data = make_data((2, 6, 6))
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3))
    found = calibrate(model, ["0"], data.train, num_samples=10_000, seed=0)["0"]
    y = model[0](next(iter(data.train.batches(10_000))).inputs).detach()
    assert found.covariance is None  # no one matrix is applied to every patch
    assert found.power == pytest.approx(float(y.square().sum(1).mean()), rel=1e-4)


def one_class_after_another(seed):
    """800 samples of four classes of unlike inputs, as they are stored class by class, or shuffled."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(4).repeat_interleave(200)
    pixels = torch.randn(800, 6, generator=generator) + targets[:, None]
    if seed is not None:
        order = torch.randperm(800, generator=torch.Generator().manual_seed(seed))
        pixels, targets = pixels[order], targets[order]
    test = Source(torch.randn(8, 6, generator=generator), torch.arange(8) % 4)
    return assemble(
        "sorted", Source(pixels, targets), test=test, class_names="abcd", mean=[0.0], std=[1.0], pixel_max=1,
        validation_fraction=0.1,
    )  # fmt: skip


def test_statistics_of_data_stored_class_by_class_are_those_of_shuffled_data():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    whole = calibrate(model, ["0"], one_class_after_another(None).train, num_samples=720, seed=0)["0"]
    for order in (None, 0, 1):
        found = calibrate(model, ["0"], one_class_after_another(order).train, num_samples=160, seed=0)["0"]
        error = (found.covariance - whole.covariance).norm() / whole.covariance.norm()
        assert error < 0.25  # the first 160 rows are all of class a: 0.9


def test_ranges_of_activations_are_those_of_all_classes():
    """The range is a moving average over batches: classes one after another would leave that of the last."""
    batches = [batch.inputs for batch in draw(one_class_after_another(None).train, 256, seed=0).batches(16)]
    shuffled = [batch.inputs for batch in draw(one_class_after_another(0).train, 256, seed=0).batches(16)]
    ranges = []
    for inputs in (batches, shuffled):
        module = nn.Linear(6, 5)
        quantize_input(module, ActivationQuant())
        calibrate_activations(module, inputs)
        ranges.append(float(module.input_quant.high - module.input_quant.low))
    assert ranges[0] == pytest.approx(ranges[1], rel=0.15)


@pytest.mark.slow
def test_compression_of_an_image_folder_is_as_good_as_of_shuffled_images(run_strategy, digits_by_class):
    """The folder has the classes one after the other; the draw is the same for both, up to the order of rows."""
    wishes = ("strategy=compress", "compress.budget=0.12", "teacher_fit.epochs=15")
    by_class, _ = run_strategy("data=image_folder", f"data.path={digits_by_class}", *wishes)
    mixed, _ = run_strategy("data=digits", *wishes)
    accuracies = [record.stages[0]["metrics"]["test_accuracy"] for record in (by_class, mixed)]
    assert min(accuracies) > 0.88

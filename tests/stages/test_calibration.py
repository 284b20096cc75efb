"""Statistics of layers against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compresskd import tt
from compresskd.api.functions import compress
from compresskd.api.samples import data_of
from compresskd.compression.calibration import calibrate, of_table
from compresskd.data import Source, assemble
from compresskd.data.draw import draw
from compresskd.data.synthetic import synthetic
from compresskd.quant.activation import ActivationQuant, quantize_input
from compresskd.quant.activation import calibrate as calibrate_activations


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
        statistics = of_table(found["table"], model.table)
        before, changes, expected = model(ids), [], []
        for seed in range(20):
            change = 1e-3 * torch.randn(40, 8, generator=torch.Generator().manual_seed(seed))
            rows = model.table(ids) + change[ids]
            after = F.linear(torch.tanh(model.inner(rows)), model.head.weight)
            changes.append(float((after - before).square().sum() / len(ids)))
            expected.append(statistics.sensitivity * float((change @ statistics.covariance * change).sum()))
        assert 0.6 < sum(expected) / sum(changes) < 1.6

    def test_data_aware_ranks_of_a_tied_table(self):
        model, data, _ = self.calibrated()
        small = compress(
            model, next(iter(data.train.batches(32))).inputs, rank=4, data_aware=True, method="svd"
        )
        assert isinstance(small.table, tt.TTEmbedding)
        assert small.table.cores is small.head.cores


class TokenModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.inner(self.table(ids))))


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

"""What is counted of a teacher's passes, whatever an interruption made it repeat."""

import pytest
import torch
from torch import nn

from compresskd import progress
from compresskd.data.synthetic import synthetic
from compresskd.data.text.split import TextSplit
from compresskd.stages.teacher_outputs import TeacherOutputs
from compresskd.tasks import Classification
from compresskd.training import Recipe
from compresskd.training.schedules import constant

COUNTS = ("num_computed", "num_served")


@pytest.fixture
def data():
    return synthetic(
        name="synthetic", num_train=60, num_test=8, separation=0.3, data_seed=0, num_classes=4, input_shape=(6,),
        validation_fraction=None, validation_count=10, split_seed=0, augmentation=None, augmentation_bank=None,
    )  # fmt: skip


def outputs(data, *, cacheable, **more):
    recipe = Recipe(epochs=3, batch_size=16, optimizer=torch.optim.SGD, scheduler=constant)
    torch.manual_seed(0)
    teacher = nn.Linear(6, 4)
    return TeacherOutputs(
        teacher,
        data.train,
        data.task,
        3,
        seed=0,
        cacheable=cacheable,
        recipe=recipe,
        device=torch.device("cpu"),
        **more,
    )


def ask(one, data, epoch, start=0):
    for batch in data.train.batches(16, epoch=epoch, start=start):
        one(batch)


def counts(one):
    return {name: one.saving()[name] for name in COUNTS}


def test_a_pass_over_a_whole_view_tells_how_far_it_is(data, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", -1.0)
    said = []
    one = outputs(data, cacheable=True, note=said.append)
    ask(one, data, 0)
    size = one._recipe.evaluation_batch_size
    count = -(-len(data.train) // size)
    assert said == [f"the teacher's outputs, batches: {done} of {count}" for done in range(count)]
    ask(one, data, 1)
    assert len(said) == count


def test_outputs_of_texts_are_those_of_each_text():
    """The pass over a whole view takes texts of one length together."""
    lengths = torch.randint(1, 12, (40,), generator=torch.Generator().manual_seed(0))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.arange(int(offsets[-1]), dtype=torch.int32) % 97
    split = TextSplit(
        "train", {"input_ids": ids}, offsets, torch.arange(40), torch.arange(40) % 4, "", {"input_ids": 1}
    )
    table = torch.randn(97, 4, generator=torch.Generator().manual_seed(1))

    class Bag(nn.Module):
        def forward(self, input_ids, attention_mask):
            return (table[input_ids] * attention_mask[..., None]).sum(1)

    one = TeacherOutputs(
        Bag(), split, Classification(), 3, seed=0, cacheable=True, device=torch.device("cpu"),
        recipe=Recipe(
            epochs=3, batch_size=16, optimizer=torch.optim.SGD, scheduler=constant, evaluation_batch_size=6
        ),
    )  # fmt: skip
    for batch in split.batches(16, epoch=0):
        for row, position in enumerate(batch.index.tolist()):
            expected = table[ids[offsets[position] : offsets[position + 1]]].sum(0)
            torch.testing.assert_close(one(batch).logits[row], expected)
    assert one.saving()["num_computed"] == 40


@pytest.mark.parametrize("cacheable", [True, False])
def test_counts_are_those_of_an_undisturbed_run(data, cacheable):
    whole = outputs(data, cacheable=cacheable)
    for epoch in range(3):
        ask(whole, data, epoch)
    expected = counts(whole)
    assert expected == {"num_computed": 50 if cacheable else 150, "num_served": 150}

    one = outputs(data, cacheable=cacheable)
    for epoch in range(3):
        ask(one, data, epoch)
        saved = one.state_dict()
        ask(one, data, epoch)  # goes past the checkpoint, and is killed
        one = outputs(data, cacheable=cacheable)
        one.load_state_dict(saved)
    assert counts(one) == expected
    assert one.saving()["seconds_saved"] >= 0


def test_a_kill_before_the_first_checkpoint_counts_once(data):
    ask(outputs(data, cacheable=True), data, 0)
    one = outputs(data, cacheable=True)
    ask(one, data, 0)
    assert counts(one) == {"num_computed": 50, "num_served": 50}


def test_a_checkpoint_of_an_earlier_version_has_no_views(data):
    one = outputs(data, cacheable=True)
    one.load_state_dict({"num_computed": 50, "num_served": 50, "seconds": 1.0})
    ask(one, data, 1)
    assert counts(one) == {"num_computed": 100, "num_served": 100}


def packing(data, teacher, **options):
    recipe = Recipe(
        epochs=3,
        batch_size=16,
        optimizer=torch.optim.SGD,
        scheduler=constant,
        teacher_outputs=2,
        teacher_bits=32,
    )
    return TeacherOutputs(
        teacher, data.train, data.task, 1, seed=0, recipe=recipe, device=torch.device("cpu"), temperatures=(2.0,),
        **{"cacheable": True, **options},
    )  # fmt: skip


def test_packed_outputs_are_computed_once_for_all_runs_and_read_by_position(data, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESSKD_CACHE", str(tmp_path))
    teacher = nn.Linear(6, 4)
    first, second, trial = (
        packing(data, teacher),
        packing(data, teacher),
        packing(data, teacher, cacheable=False),
    )
    for epoch in range(2):
        for batch in data.train.batches(16, epoch=epoch):
            whole = teacher(batch.inputs).detach()
            found = [one(batch).top for one in (first, second, trial)]
            for top in found:
                assert torch.equal(top.index, whole.topk(2, dim=1).indices)
                torch.testing.assert_close(top.values, whole.topk(2, dim=1).values)
    assert [one.saving()["num_computed"] for one in (first, second, trial)] == [50, 0, 100]
    other = packing(data, nn.Linear(6, 4))
    next(iter(map(other, data.train.batches(16, epoch=0))))
    assert other.saving()["num_computed"] == 50  # another teacher says other things

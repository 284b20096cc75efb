from dataclasses import replace

import pytest
import torch

from compresskd.data.draw import draw
from compresskd.data.text.split import TextSplit, padded, split_fingerprint
from compresskd.tasks import IGNORED


def make(count=23, *, of_tokens=False, seed=0, **options):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (count,), generator=rng)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(5, 99, (int(offsets[-1]),), generator=rng, dtype=torch.int32)
    targets = padded(ids, offsets) if of_tokens else torch.arange(count) % 3
    return TextSplit(
        "train", {"input_ids": ids}, offsets, torch.arange(count), targets, "", {"input_ids": 1}, **options
    )


def sample(split, position):
    row = int(split.rows[position])
    return split.columns["input_ids"][int(split.offsets[row]) : int(split.offsets[row + 1])].tolist()


def content(batch):
    return [batch.index.tolist(), batch.targets.tolist(), *(v.tolist() for v in batch.inputs.values())]


@pytest.mark.parametrize("of_tokens", [False, True])
@pytest.mark.parametrize("epoch", [None, 0])
def test_batches_are_filled_up_to_the_longest(of_tokens, epoch):
    split = make(of_tokens=of_tokens, group_by_length=True)
    seen = []
    for batch in split.batches(4, epoch=epoch, seed=3):
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert ids.dtype == mask.dtype == batch.targets.dtype == torch.int64
        assert ids.shape == mask.shape
        assert mask.any(0).all()
        assert (ids[mask == 0] == 1).all()
        for row, position in enumerate(batch.index.tolist()):
            tokens = sample(split, position)
            assert ids[row][mask[row] == 1].tolist() == tokens
            assert mask[row].tolist() == [1] * len(tokens) + [0] * (ids.shape[1] - len(tokens))
            if of_tokens:
                assert batch.targets[row].tolist() == tokens + [IGNORED] * (ids.shape[1] - len(tokens))
            else:
                assert batch.targets[row] == position % 3
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(23))
    assert epoch is not None or seen == list(range(23))


@pytest.mark.parametrize("grouped", [False, True])
def test_batches_are_a_pure_function_of_seed_epoch_and_step(grouped):
    split = make(group_by_length=grouped)
    one, two = ([content(b) for b in split.batches(4, epoch=2, seed=5)] for _ in range(2))
    assert one == two
    for start in range(len(one) + 1):
        assert [content(b) for b in split.batches(4, epoch=2, seed=5, start=start)] == one[start:]
    assert one != [content(b) for b in split.batches(4, epoch=3, seed=5)]
    assert one != [content(b) for b in split.batches(4, epoch=2, seed=6)]


def test_groups_of_one_length_have_less_padding():
    def tokens(split):
        return sum(batch.inputs["input_ids"].numel() for batch in split.batches(8, epoch=0))

    split = make(400)
    total = int(split.lengths.sum())
    assert tokens(replace(split, group_by_length=True)) < 1.15 * total < tokens(split)


@pytest.mark.parametrize("of_tokens", [False, True])
def test_every_sample_comes_once_with_texts_of_its_length(of_tokens):
    split = make(400, of_tokens=of_tokens)
    batches = list(split.every_sample(8))
    assert len(batches) == split.num_batches(8, training=False)
    lengths = [batch.inputs["attention_mask"].sum(1) for batch in batches]
    assert torch.equal(torch.cat(lengths), split.lengths.sort(descending=True).values)
    assert sum(batch.inputs["input_ids"].numel() for batch in batches) < 1.05 * int(split.lengths.sum())
    in_order = {row: content(batch)[1:] for row, batch in enumerate(split.batches(1))}
    for batch in batches:
        for row, position in enumerate(batch.index.tolist()):
            ((targets,), *inputs) = in_order.pop(position)
            assert batch.inputs["input_ids"][row][: len(inputs[0][0])].tolist() == inputs[0][0]
            assert (
                batch.targets[row][: len(targets)].tolist() if of_tokens else batch.targets[row]
            ) == targets
    assert not in_order


def test_texts_of_one_length_and_those_with_hidden_tokens_keep_their_order():
    split = make()
    alike = replace(split, offsets=torch.arange(24) * 3, columns={"input_ids": torch.arange(5, 77)})
    hidden = replace(split, masking=lambda ids, drawn: (ids, ids))
    for each in (alike, hidden):
        assert list(map(content, each.every_sample(4))) == list(map(content, each.batches(4)))


def test_a_last_batch_of_one_is_left_out_in_training_alone():
    split = make(9)
    assert [len(b) for b in split.batches(4, epoch=0)] == [4, 4]
    assert [len(b) for b in split.batches(4)] == [4, 4, 1]
    assert split.num_batches(4) == 2
    assert split.num_batches(4, training=False) == 3


def test_taken_samples_keep_all_that_is_theirs():
    split = make(sizes=torch.arange(23), num_bytes=253, weights=torch.arange(23) / 22)
    few = split.take(torch.tensor([7, 2]), "few")
    (batch,) = few.batches(2)
    assert (few.num_bytes, few.fingerprint, batch.index.tolist()) == (9, "few", [0, 1])
    assert [sample(few, 0), sample(few, 1)] == [sample(split, 7), sample(split, 2)]
    assert batch.weights.tolist() == [float(split.weights[7]), float(split.weights[2])]
    assert batch.targets.tolist() == [1, 2]
    assert draw(split, 6, seed=0).targets.unique().tolist() == [0, 1, 2]


def test_the_longest_sample_and_the_largest_number_are_found():
    split = make()
    longest, largest = split.extremes.tolist()
    assert len(sample(split, longest)) == int(split.lengths.max())
    assert max(sample(split, largest)) == int(split.columns["input_ids"].max())
    elsewhere = split.take(torch.tensor([p for p in range(23) if p != largest]), "")
    assert len(elsewhere.extremes) == 1


def test_texts_without_a_mask_have_ids_alone():
    (batch,) = make(masked=False).batches(23)
    assert list(batch.inputs) == ["input_ids"]


def test_the_fingerprint_is_of_all_that_determines_batches():
    split = make()
    others = [
        replace(split, columns={"input_ids": split.columns["input_ids"] + 1}),
        replace(split, targets=split.targets + 1),
        replace(split, rows=split.rows.flip(0)),
        replace(split, weights=torch.ones(23)),
        replace(split, group_by_length=True),
        replace(split, padding={"input_ids": 2}),
        make(22),
    ]
    found = [split_fingerprint(each) for each in [split, *others]]
    assert len(set(found)) == len(found)
    assert split_fingerprint(make()) == found[0]


def test_passes_that_are_not_there_are_refused():
    split = make()
    for options in ({"epoch": -1}, {"view": 1}, {"epoch": 0, "view": 0}, {"start": 7}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"^{next(reversed(options))}: expected"):
            split.batches(**{"batch_size": 4, **options})


@pytest.mark.parametrize("count", [1, 2, 22, 23])
def test_a_text_of_median_length_stands_for_all(count):
    split = make(count)
    lengths = split.lengths.sort().values
    (shown,) = split.example["input_ids"].tolist()
    assert shown == sample(split, split.typical)
    assert len(shown) == lengths[count // 2]
    turned = split.take(torch.arange(count).flip(0), "")  # in any order it is one of that length
    assert turned.example["input_ids"].shape == split.example["input_ids"].shape

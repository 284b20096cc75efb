import pytest
from refusals import says

from compresskd.data.named import named_splits
from compresskd.options import OptionError


@pytest.mark.parametrize(
    ("present", "given", "expected"),
    [
        (["train", "validation", "test"], {}, {"train": "train", "validation": "validation", "test": "test"}),
        (["train", "test"], {}, {"train": "train", "test": "test"}),
        (["train", "validation"], {}, {"train": "train", "test": "validation"}),
        (["Train", "dev"], {}, {"train": "Train", "test": "dev"}),
        (["all"], {}, {"train": "all"}),
        (["validation"], {}, {"train": "validation"}),
        (["validation", "test"], {"train_split": "validation"}, {"train": "validation", "test": "test"}),
        (
            ["train", "validation"],
            {"validation_split": "validation"},
            {"train": "train", "validation": "validation"},
        ),
        (
            ["train", "a", "b"],
            {"test_split": "a", "validation_split": "b"},
            {"train": "train", "validation": "b", "test": "a"},
        ),
    ],
)
def test_splits_are_found_by_their_names(present, given, expected):
    assert named_splits(present, "it", **given)[0] == expected


def test_a_validation_split_that_is_the_test_is_told():
    _, (notice,) = named_splits(["train", "validation"], "it")
    assert (notice.kind, notice.split) == ("splits", "test")


def test_splits_that_are_not_read_are_told():
    _, (notice,) = named_splits(["train", "test", "unsupervised"], "it")
    assert notice.examples == ("unsupervised",)


@pytest.mark.parametrize(
    ("present", "given", "message"),
    [
        (["train", "test"], {"test_split": "tset"}, says("test_split", "tset", "did you mean test")),
        (
            ["train", "test"],
            {"validation_split": "test", "test_split": "test"},
            says("validation_split", "different"),
        ),
        (["validation", "test"], {}, says("train_split", "null", "data.train_split=NAME")),
    ],
)
def test_splits_that_do_not_fit_are_refused(present, given, message):
    with pytest.raises(OptionError, match=message):
        named_splits(present, "it", **given)

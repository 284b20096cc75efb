import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from compresskd.data import hub as module
from compresskd.data.hub import hub

OPTIONS = {
    "name": "letters",
    "id": "someone/letters",
    "config": None,
    "revision": None,
    "path": None,
    "image_column": "image",
    "label_column": "label",
    "train_split": "train",
    "validation_split": None,
    "test_split": "test",
    "size": None,
    "channels": 1,
    "mean": [0.5],
    "std": [0.25],
    "test_fraction": None,
    "cache_dir": None,
    "max_in_memory_bytes": 10**9,
    "validation_fraction": 0.25,
}


def load(**options):
    return hub(**{**OPTIONS, **options})


@pytest.fixture
def parts(draw, encode):
    """A function that makes the columns of a split in the layout of MNIST."""

    def make(count, seed, labels=None):
        pixels = draw(count, seed=seed)
        rows = [{"bytes": encode(image), "path": None} for image in pixels]
        return pixels, {"image": rows, "label": labels or [number % 3 for number in range(count)]}

    return make


@pytest.fixture
def folder(tmp_path, parts):
    """A function that writes train and test as parquet files; returns the folder and the pixels."""

    def write(*, labels=ClassLabel(names=["a", "b", "c"]), name="letters", **columns):  # noqa: B008
        root, pixels = tmp_path / name, {}
        root.mkdir(exist_ok=True)
        for split, count, seed in (("train", 20, 0), ("test", 9, 1)):
            pixels[split], table = parts(count, seed, columns.get(split))
            features = Features({"image": Image(), "label": labels})
            Dataset.from_dict(table, features=features).to_parquet(root / f"{split}-00000-of-00001.parquet")
        return root, pixels

    return write


def test_a_local_folder_in_the_layout_of_the_hub(folder):
    root, pixels = folder()
    data = load(path=str(root))
    assert data.class_names == ("a", "b", "c")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [15, 5, 9]
    np.testing.assert_array_equal(data.train.pixels[:, 0].numpy(), pixels["train"])
    (batch,) = data.test.batches(9)
    expected = (pixels["test"] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(batch.inputs[:, 0].numpy(), expected, rtol=0, atol=1e-6)
    assert batch.targets.tolist() == [0, 1, 2] * 3


def test_a_folder_decoded_before_is_not_opened_as_a_data_set(folder, monkeypatch):
    root, _ = folder()
    first = load(path=str(root))

    def refuse(*arguments, **options):
        raise AssertionError("opened")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    assert load(path=str(root)).fingerprint == first.fingerprint
    moved = root.rename(root.parent / "elsewhere")
    assert load(path=str(moved)).fingerprint == first.fingerprint


def test_a_set_of_the_hub_and_its_copy_in_a_folder_are_the_same_data(folder, parts, monkeypatch):
    root, _ = folder()
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    remote = DatasetDict(
        {
            split: Dataset.from_dict(parts(count, seed)[1], features=features)
            for split, count, seed in (("train", 20, 0), ("test", 9, 1))
        }
    )
    asked = []

    def answer(name, config, revision):
        asked.append((name, config, revision))
        return remote

    with monkeypatch.context() as patched:
        patched.setattr("datasets.load_dataset", answer)
        data = load(revision="abc")
    assert asked == [("someone/letters", None, "abc")]
    assert data.fingerprint == load(path=str(root)).fingerprint


@pytest.mark.parametrize(
    ("labels", "values", "names"),
    [
        (Value("string"), ["x", "z", "y"], ("x", "y", "z")),
        (Value("int64"), [3, 10, 4], ("3", "4", "10")),
    ],
)
def test_labels_without_declared_classes_are_numbered_in_their_order(folder, labels, values, names):
    columns = {"train": (values * 7)[:20], "test": values * 3}
    data = load(path=str(folder(labels=labels, **columns)[0]))
    assert data.class_names == names
    assert [names[target] for target in data.test.targets.tolist()] == list(map(str, values * 3))


def test_own_validation_splits_and_missing_test_splits(folder):
    root, pixels = folder()
    (root / "test-00000-of-00001.parquet").rename(root / "validation-00000-of-00001.parquet")
    data = load(
        path=str(root),
        validation_split="validation",
        validation_fraction=None,
        test_split=None,
        test_fraction=0.3,
    )
    assert [len(split) for split in (data.train, data.validation, data.test)] == [14, 9, 6]
    np.testing.assert_array_equal(data.validation.pixels[:, 0].numpy(), pixels["test"])


def test_images_of_other_sizes_are_resized(folder):
    root, _ = folder()
    data = load(path=str(root), size=4, channels=3, mean=[0.5] * 3, std=[0.25] * 3)
    assert data.input_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"image_column": "img"},
            "image_column: got 'img', expected a column of .*: image, label",
        ),
        ({"label_column": "digit"}, "label_column: got 'digit', expected a column of"),
        ({"image_column": "label"}, "image_column: got 'label', expected"),
        (
            {"test_split": "valid"},
            r"data.test_split: .* no split 'valid', it has \['test', 'train'\]; .*=null data.te",
        ),
        ({"train_split": "all"}, r"data.train_split: .* no split 'all', .*; write data.train_split=NAME$"),
        ({"num_classes": 10}, "num_classes: got 10, expected"),
        ({"input_shape": [1, 28, 28]}, r"input_shape: got \[1, 28, 28\], expected"),
        ({"validation_fraction": 0.0}, r"validation_fraction: got 0\.0, expected"),
        (
            {"validation_split": "test"},
            r"validation_fraction: got 0\.25, expected",
        ),
        ({"test_fraction": 0.2}, r"test_fraction: got 0\.2, expected"),
        ({"std": None}, r"mean: got \[0\.5\], expected null, as std is: both or neither"),
        ({"revision": "main"}, "revision: got 'main', expected"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, options, words):
    root, _ = folder()
    with pytest.raises(ValueError, match=words):
        load(path=str(root), **options)


def test_columns_of_another_kind_are_refused(tmp_path):
    for split in ("train", "test"):
        columns = {"image": [1, 2, 3] * 4, "label": ["x", "y", "z"] * 4, "tags": [["x"]] * 12}
        Dataset.from_dict(columns).to_parquet(tmp_path / "numbers" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="image_column: got 'image', expected"):
        load(path=str(tmp_path / "numbers"))
    with pytest.raises(ValueError, match="label_column: got 'tags', expected"):
        load(path=str(tmp_path / "numbers"), label_column="tags")


def test_labels_that_train_lacks_are_named(folder):
    root, _ = folder(labels=Value("string"), train=["x", "y"] * 10, test=["x"] * 8 + ["q"])
    with pytest.raises(ValueError, match="label_column: got 'q', expected"):
        load(path=str(root))


def test_an_unlabelled_split_is_refused(folder):
    root, _ = folder(test=[-1] * 9)
    with pytest.raises(
        ValueError, match=r"labels 0 to 2 in the test split, got -1 at sample 0; an unlabelled"
    ):
        load(path=str(root))


def test_an_unreadable_image_is_named(folder, parts):
    root, _ = folder()
    _, table = parts(20, 0)
    table["image"][13]["bytes"] = b"not an image"
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    Dataset.from_dict(table, features=features).to_parquet(root / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"image of the train split of .*: image 13 cannot be decoded"):
        load(path=str(root))


def test_folders_that_are_no_data_set_are_refused(tmp_path, folder):
    with pytest.raises(ValueError, match=r"path: got '.*gone', expected a folder"):
        load(path=str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"path: got '.*empty', expected a data set that can be read"):
        load(path=str(tmp_path / "empty"))
    root, _ = folder()
    file = root / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(
        ValueError, match=r"the test split of .* cannot be read .*; if its files are damaged, fetch"
    ):
        load(path=str(root))


def test_no_connection_says_what_to_write(monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(ValueError, match=r"id: got 'someone/letters', expected .* write data.path=DIR"):
        load()
    with pytest.raises(ValueError, match=r"id: got null, expected OWNER/NAME"):
        load(id=None)


def test_nothing_of_the_hub_is_imported_for_a_decoded_folder(folder):
    root, _ = folder()
    load(path=str(root))
    assert "datasets" not in vars(module)


def test_null_images_and_labels_are_named(folder, parts):
    root, _ = folder()
    _, table = parts(20, 0)
    images = [*table["image"]]
    images[3] = images[7] = None
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    file = root / "train-00000-of-00001.parquet"
    Dataset.from_dict({**table, "image": images}, features=features).to_parquet(file)
    with pytest.raises(
        ValueError, match=r"2 images of the train split of .*: image 3 is null; image 7 is null; mend"
    ):
        load(path=str(root))
    data = load(path=str(root), skip_bad=True)
    assert len(data.train) + len(data.validation) == 18
    assert [(notice.kind, notice.count) for notice in data.notices] == [("skipped", 2)]
    labels = [*table["label"]]
    labels[5] = None
    Dataset.from_dict({**table, "label": labels}, features=features).to_parquet(file)
    with pytest.raises(ValueError, match="label_column: got null, expected"):
        load(path=str(root))
    floats = {**table, "label": [float(label) for label in table["label"]]}
    Dataset.from_dict(floats, features=Features({"image": Image(), "label": Value("float64")})).to_parquet(
        file
    )
    with pytest.raises(ValueError, match="label_column: got 'label', expected"):
        load(path=str(root))

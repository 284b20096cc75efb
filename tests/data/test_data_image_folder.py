import shutil

import numpy as np
import pytest

from compresskd.data.image_folder import image_folder


def load(path, **options):
    defaults = {
        "name": "insects",
        "size": None,
        "channels": None,
        "mean": None,
        "std": None,
        "test_fraction": 0.2,
        "cache_dir": None,
        "max_in_memory_bytes": 10**9,
        "validation_fraction": 0.2,
    }
    return image_folder(path=None if path is None else str(path), **{**defaults, **options})


def test_folders_are_classes_and_splits(class_folders):
    root, pixels = class_folders
    data = load(root)
    assert data.class_names == ("ant", "bee")
    assert data.input_shape == (1, 6, 5)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [16, 4, 8]
    np.testing.assert_array_equal(data.train.pixels[:, 0].numpy(), pixels["train"])
    np.testing.assert_array_equal(data.test.pixels[:, 0].numpy(), pixels["test"])
    assert data.test.targets.tolist() == [0] * 4 + [1] * 4


def test_mean_and_deviation_are_measured_where_none_are_given(class_folders):
    root, pixels = class_folders
    data = load(root)
    assert data.mean == pytest.approx([pixels["train"].mean() / 255], abs=1e-4)
    assert data.std == pytest.approx([pixels["train"].std() / 255], abs=1e-4)


def test_folders_for_validation_are_used_and_missing_ones_are_cut(class_folders):
    root, _ = class_folders
    shutil.copytree(root / "test", root / "val")
    assert len(load(root).validation) == 8
    shutil.rmtree(root / "val")
    shutil.rmtree(root / "test")
    assert [len(split) for split in (load(root).train, load(root).validation, load(root).test)] == [13, 3, 4]


def test_a_second_load_reads_the_cache_and_a_changed_file_does_not(class_folders, cache_dir, draw, encode):
    root, _ = class_folders
    first = load(root)
    entries = {file.name for file in cache_dir.iterdir()}
    assert load(root).fingerprint == first.fingerprint
    assert {file.name for file in cache_dir.iterdir()} == entries
    (root / "train" / "ant" / "000.png").write_bytes(encode(draw(1, seed=7)[0]))
    assert load(root).fingerprint != first.fingerprint
    assert load(root).test.fingerprint == first.test.fingerprint


def test_streamed_and_resident_batches_are_equal(class_folders):
    root, _ = class_folders
    resident, streamed = load(root), load(root, max_in_memory_bytes=100)
    assert streamed.train.streamed
    assert streamed.fingerprint == resident.fingerprint
    for one, other in zip(
        resident.train.batches(5, epoch=1), streamed.train.batches(5, epoch=1), strict=True
    ):
        assert one.index.tolist() == other.index.tolist()
        np.testing.assert_array_equal(one.inputs.numpy(), other.inputs.numpy())


def test_images_of_many_sizes_are_resized(class_folders, draw, encode):
    root, _ = class_folders
    (root / "train" / "bee" / "big.jpg").write_bytes(encode(draw(1, (20, 30))[0], "JPEG"))
    with pytest.raises(
        ValueError, match=r"image \d+ of the train split of .* is 20x30 pixels, .* write data.size=P"
    ):
        load(root)
    assert load(root, size=4).input_shape == (1, 4, 4)
    assert load(root, size=4, channels=3).input_shape == (3, 4, 4)


def empty_class(root):
    (root / "train" / "cricket").mkdir()


def unknown_class(root):
    (root / "test" / "ant").rename(root / "test" / "wasp")


def damaged_image(root):
    (root / "train" / "ant" / "003.png").write_bytes(b"garbage")


def no_train(root):
    (root / "train").rename(root / "training")


def no_classes(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (
            empty_class,
            ValueError,
            r"expected images \(.bmp, .*\) in .*cricket, got none; add some, or remove",
        ),
        (
            unknown_class,
            ValueError,
            r"test/wasp is a class that train does not have; its classes are \['ant', 'bee'\]",
        ),
        (damaged_image, ValueError, r"image 3 of the train split of .* \(.*003.png\) cannot be decoded"),
        (
            no_train,
            FileNotFoundError,
            r"expected .*/train/CLASS/\*.png, got the folders \['test', 'training'\]",
        ),
        (no_classes, ValueError, "expected a folder for each class in .*train, got none"),
    ],
)
def test_folders_of_another_layout_are_refused(class_folders, damage, error, words):
    root, _ = class_folders
    damage(root)
    with pytest.raises(error, match=words):
        load(root)


@pytest.mark.parametrize(
    ("path", "options", "error", "words"),
    [
        (None, {}, ValueError, "data.path: expected a folder .*; write data.path=DIR"),
        (
            "/not/there",
            {},
            FileNotFoundError,
            "data.path: the folder /not/there is not there; write data.path=DIR",
        ),
    ],
)
def test_impossible_paths_are_refused(path, options, error, words):
    with pytest.raises(error, match=words):
        load(path, **options)


def test_options_are_checked_before_images_are_decoded(class_folders, cache_dir):
    root, _ = class_folders
    with pytest.raises(ValueError, match=r"data.validation_fraction: .* got 1.5"):
        load(root, validation_fraction=1.5)
    assert not cache_dir.exists()
    with pytest.raises(
        ValueError, match=r"data.num_classes: the data has 2 classes, the configuration says 3"
    ):
        load(root, num_classes=3)

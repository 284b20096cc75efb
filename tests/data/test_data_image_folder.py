import os
import shutil
import socket
import unicodedata

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
            "path: got",
        ),
        (
            unknown_class,
            ValueError,
            "path: got",
        ),
        (
            damaged_image,
            ValueError,
            r"1 image of the train split of .*: image 3 \(.*003.png\) cannot be decoded",
        ),
        (
            no_train,
            ValueError,
            r"path: got '.*', expected train/CLASS/\*\.png",
        ),
        (
            no_classes,
            ValueError,
            "path: got",
        ),
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
        (None, {}, ValueError, "path: got null, expected"),
        (
            "/not/there",
            {},
            ValueError,
            "path: got '/not/there', expected a folder",
        ),
    ],
)
def test_impossible_paths_are_refused(path, options, error, words):
    with pytest.raises(error, match=words):
        load(path, **options)


def test_options_are_checked_before_images_are_decoded(class_folders, cache_dir):
    root, _ = class_folders
    with pytest.raises(ValueError, match=r"validation_fraction: got 1\.5, expected"):
        load(root, validation_fraction=1.5)
    assert not cache_dir.exists()
    with pytest.raises(ValueError, match="num_classes: got 3, expected"):
        load(root, num_classes=3)


def kinds(data):
    return {(notice.kind, notice.split): notice for notice in data.notices}


def test_what_systems_leave_behind_changes_nothing(class_folders):
    root, _ = class_folders
    before = load(root)
    for name in ("._000.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden/x.png", "@eaDir/x.png"):
        for folder in (root, root / "train", root / "train" / "ant", root / "test" / "bee"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"no image")
    (root / "train" / "__MACOSX").mkdir()
    after = load(root)
    assert (after.fingerprint, after.notices) == (before.fingerprint, ())


def test_files_of_other_kinds_are_counted_and_said(class_folders):
    root, _ = class_folders
    for name in ("1.heic", "2.HEIC", "notes.txt", "LICENSE"):
        (root / "train" / "ant" / name).write_bytes(b"something")
    (root / "test" / "x.png").write_bytes(b"beside the classes")
    (root / "valid").mkdir()
    found = kinds(load(root))
    assert found.keys() == {("other", "train"), ("outside", "test"), ("beside", None)}
    assert found["other", "train"].count == 4
    text = found["other", "train"].text.replace("1 no suffix, 1 .txt", "1 .txt, 1 no suffix")
    assert text.startswith("train: 4 not read, since of another kind (2 .heic, 1 .txt, 1 no suffix): ")
    assert found["beside", None].text == "folders beside train, val and test are not read: valid"


def test_pipes_and_sockets_are_left_alone_and_counted(class_folders):
    root, _ = class_folders
    before = load(root).fingerprint
    os.mkfifo(root / "train" / "ant" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "train" / "bee" / "s.png"))
    (root / "test" / "ant" / "null.png").symlink_to("/dev/null")
    data = load(root)
    assert data.fingerprint == before
    assert {key: notice.count for key, notice in kinds(data).items()} == {
        ("special", "train"): 2, ("special", "test"): 1,
    }  # fmt: skip


def test_a_folder_linked_into_itself_is_read_once_and_said(class_folders):
    root, _ = class_folders
    before = load(root).fingerprint
    (root / "train" / "ant" / "again").symlink_to(root / "train" / "ant")
    (root / "train" / "bee" / "up").symlink_to(root / "train")
    data = load(root)
    assert data.fingerprint == before
    assert kinds(data)["loop", "train"].count == 2
    assert "train: 2 not followed, since a link back to a folder" in kinds(data)["loop", "train"].text


def test_links_to_folders_elsewhere_are_followed_once(class_folders, tmp_path, draw, encode):
    root, _ = class_folders
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.png").write_bytes(encode(draw(1, seed=9)[0]))
    for name in ("one", "two"):
        (root / "train" / "ant" / name).symlink_to(elsewhere)
    assert len(load(root).train) + len(load(root).validation) == 21


def test_two_classes_that_are_one_folder_are_refused(class_folders):
    root, _ = class_folders
    (root / "train" / "cricket").symlink_to(root / "train" / "ant")
    with pytest.raises(
        ValueError,
        match="path: got",
    ):
        load(root)


def test_links_that_lead_nowhere_are_named(class_folders):
    root, _ = class_folders
    link = root / "train" / "ant" / "gone.png"
    link.symlink_to("/not/there.png")
    words = r"1 image .*: image \d+ \(.*ant/gone.png\) is a link to /not/there.png, which cannot be read \(No such"
    with pytest.raises(ValueError, match=words):
        load(root)
    data = load(root, skip_bad=True)
    assert kinds(data)["skipped", "train"].count == 1
    link.unlink()
    for folder in (root / "train" / "cricket", root / "val"):
        folder.symlink_to("/not/there")
        with pytest.raises(ValueError, match=rf"{folder.name}', expected no link to /not/there"):
            load(root)
        folder.unlink()


def test_bad_images_of_all_splits_are_told_together_or_left_out(class_folders, cache_dir):
    root, pixels = class_folders
    for name in ("train/ant/000.png", "train/bee/012.png", "test/ant/000.png"):
        (root / name).write_bytes(b"garbage")
    with pytest.raises(
        ValueError, match=r"^2 images of the train split .*; and 1 image of the test split of .*"
    ):
        load(root)
    for _ in range(2):  # decoded, and from the cache
        data = load(root, skip_bad=True)
        assert (len(data.train) + len(data.validation), len(data.test)) == (18, 7)
        assert kinds(data)["skipped", "train"].count == 2
        assert (
            kinds(data)["skipped", "test"]
            .examples[0]
            .endswith("test/ant/000.png) cannot be decoded: it is no image of a known kind")
        )
        np.testing.assert_array_equal(data.test.pixels[:, 0].numpy(), pixels["test"][1:])
    with pytest.raises(ValueError, match="2 images of the train split"):
        load(root)


def test_a_bare_tree_of_classes_is_cut(class_folders):
    root, pixels = class_folders
    data = load(root / "train")
    assert data.class_names == ("ant", "bee")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [13, 3, 4]
    np.testing.assert_array_equal(data.train.pixels[:, 0].numpy(), pixels["train"])
    assert kinds(data)["cut", None].count == 2
    assert "has no train/CLASS folders: its 2 folders are the classes" in kinds(data)["cut", None].text


def test_a_class_may_be_called_train(class_folders):
    root, _ = class_folders
    (root / "train" / "ant").rename(root / "train" / "train")
    assert load(root / "train").class_names == ("bee", "train")


def test_names_that_look_alike_are_told(class_folders):
    root, _ = class_folders
    shutil.copytree(root / "train" / "ant", root / "train" / "Ant")
    for number, file in enumerate((root / "train" / "Ant").iterdir()):
        file.write_bytes(file.read_bytes() + bytes([number]))
    assert kinds(load(root))["names", None].examples == ("'Ant' and 'ant'",)
    shutil.rmtree(root / "train" / "Ant")
    for split, form in (("train", "NFC"), ("test", "NFD")):
        (root / split / "ant").rename(root / split / unicodedata.normalize(form, "grün"))
    with pytest.raises(ValueError, match=r"differs in case or Unicode form alone: rename one"):
        load(root)


def test_names_that_are_no_unicode(class_folders):
    root, _ = class_folders
    file = root / "train" / "ant" / "000.png"
    os.rename(file, os.fsencode(file.parent) + b"/\xff.png")
    data = load(root)
    assert len(data.train) == 16
    (file.parent / os.fsdecode(b"\xfe.png")).write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"ant/\\udcfe.png\) cannot be decoded"):
        load(root)
    os.rename(root / "train" / "bee", os.fsencode(root / "train") + b"/\xff")
    shutil.rmtree(root / "test")
    with pytest.raises(ValueError, match=r"the class name '\\udcff' is not valid UTF-8; rename it"):
        load(root, skip_bad=True)


def test_a_folder_that_cannot_be_read_is_named(class_folders, monkeypatch):
    root, _ = class_folders
    scandir = os.scandir

    def forbidden(folder):
        if str(folder).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(
        ValueError,
        match="path: got",
    ):
        load(root)


@pytest.mark.slow
def test_many_classes_take_no_time(tmp_path, encode, draw):
    images = draw(1500, seed=3)
    for number, image in enumerate(images):
        folder = tmp_path / "many" / "train" / f"{number // 3:04}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encode(image))
    data = load(tmp_path / "many", test_fraction=0.33, validation_fraction=0.4)
    assert data.num_classes == 500
    assert len(data.test) == 495

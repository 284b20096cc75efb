from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate

from compresskd.data import augmentation as augmentations
from compresskd.options import hints_of

CONF = Path(__file__).parents[2] / "conf"
SETS = sorted(file.stem for file in (CONF / "data").glob("*.yaml"))
PRESETS = sorted(file.stem for file in (CONF / "data" / "augmentation").glob("*.yaml"))

# options that every set of texts takes, and that make no sense for one
NOT_OF = {
    "text_blocks": {"split_seed"},
    "masked_blocks": {"split_seed"},
    "python_docs": {
        "id", "config", "revision", "path", "train_split", "validation_split", "test_split", "split_seed"
    },
}  # fmt: skip


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=list(overrides)).data


@pytest.mark.parametrize("name", SETS)
def test_every_key_is_an_option_of_the_function_and_every_option_a_key(name):
    node = config(f"+data={name}")
    function = get_method(node["_target_"])
    assert node.keys() - {"_target_"} == hints_of(function).keys() - {"options", "return"} - NOT_OF.get(
        name, set()
    )
    assert node.name == name


def test_published_normalisations():
    values = {
        name: (list(config(f"+data={name}").mean), list(config(f"+data={name}").std))
        for name in ("cifar10", "cifar100", "fashion_mnist", "mnist")
    }
    assert values["cifar10"] == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert values["cifar100"] == ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])
    assert (config("+data=mnist").mean, config("+data=mnist").std) == ([0.1307], [0.3081])
    assert (config("+data=fashion_mnist").mean, config("+data=fashion_mnist").std) == ([0.2860], [0.3530])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("digits", None),
        ("mnist", None),
        ("fashion_mnist", None),
        ("cifar10", "crop_flip"),
        ("cifar100", "crop_flip"),
    ],
)
def test_default_augmentation(name, default):
    expected = None if default is None else config("+data=digits", "data/augmentation=crop_flip").augmentation
    assert config(f"+data={name}").augmentation == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_for_colour_images(preset):
    node = config(
        "+data=synthetic", f"data/augmentation={preset}", "data.input_shape=[3,16,16]", "data.num_train=64"
    )
    data = instantiate(node, _convert_="all")
    (batch,) = data.train.batches(64, epoch=0)
    assert batch.inputs.shape == (51, 3, 16, 16)
    assert data.train.num_views == (1 if preset == "none" else None)


def test_ways_to_switch_augmentation_off_and_change_it():
    for override in ("data/augmentation=none", "data.augmentation=null"):
        assert config("+data=cifar10", override).augmentation is None
    node = config(
        "+data=cifar10", "data.augmentation.operations.crop.padding=2", "~data.augmentation.operations.flip"
    )
    built = instantiate(node.augmentation, _convert_="all")
    assert built == augmentations.Compose({"crop": augmentations.RandomCrop(padding=2)})
    bank = instantiate(
        config("+data=digits", "data/augmentation=affine", "data.augmentation_bank=3"), _convert_="all"
    )
    assert bank.train.num_views == 3

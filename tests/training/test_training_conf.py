"""The YAML of optimizer, scheduler and train: every file builds, every key is read."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from compresskd.training import Recipe

CONF = Path(__file__).parents[2] / "conf"


def files(group):
    return sorted((CONF / group).glob("*.yaml"), key=lambda path: path.name)


@pytest.mark.parametrize("path", files("optimizer"), ids=lambda path: path.stem)
@pytest.mark.parametrize("schedule", files("scheduler"), ids=lambda path: path.stem)
def test_every_optimizer_trains_with_every_schedule(path, schedule, train, make_recipe):
    optimizer = instantiate(OmegaConf.load(path), _convert_="all")
    scheduler = instantiate(OmegaConf.load(schedule), _convert_="all")
    _, result = train(recipe=make_recipe(optimizer=optimizer, scheduler=scheduler))
    assert result.history[-1].train["loss"] < result.history[0].train["loss"]


@pytest.mark.parametrize("path", files("optimizer") + files("scheduler"), ids=lambda path: path.stem)
def test_every_key_is_an_option_of_its_target(path):
    config = OmegaConf.load(path)
    options = {key for key in config if not key.startswith("_")}
    parameters = inspect.signature(get_method(config["_target_"])).parameters
    assert options <= parameters.keys()
    assert "kwargs" not in parameters
    if path.parent.name == "scheduler":  # all of them are shown
        assert options == {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def test_train_holds_the_fields_of_the_recipe_with_their_defaults():
    config = OmegaConf.to_container(OmegaConf.load(CONF / "train" / "default.yaml"))
    label_smoothing = config.pop("label_smoothing")  # read by the cross-entropy term of `conf/kd`
    own = {"epochs", "precision", "optimizer", "scheduler"}  # top-level keys and groups
    assert config.keys() == {field.name for field in fields(Recipe)} - own
    for field in fields(Recipe):
        if field.name in config and field.name != "batch_size":
            assert config[field.name] == field.default, field.name
    assert label_smoothing == 0.0


def test_fused_updates_equal_plain_ones():
    for path in files("optimizer"):
        factory = instantiate(OmegaConf.load(path), _convert_="all")
        weights = []
        for fused in (True, False):
            generator = torch.Generator().manual_seed(0)
            parameter = torch.nn.Parameter(torch.randn(50, generator=generator))
            optimizer = factory([parameter], fused=fused)
            for _ in range(5):
                parameter.grad = torch.randn(50, generator=generator)
                optimizer.step()
            weights.append(parameter.detach())
        assert torch.allclose(*weights, rtol=1e-5, atol=1e-7)

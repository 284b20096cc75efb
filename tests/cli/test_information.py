"""What a command line shows instead of running: help, version, the configuration, completion."""

import re

import pytest
import yaml

from compresskd import __version__, cli


def shown(outcome):
    assert outcome.status == 0, outcome.err
    assert outcome.err == ""
    assert outcome.left == []
    return outcome.out


def test_version(run_cli):
    assert shown(run_cli("--version")) == f"compresskd {__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_groups_verbs_and_verbose(run_cli, flag):
    text = shown(run_cli(flag))
    groups = text.partition("== Configuration groups ==")[2].partition("== Config ==")[0]
    for group in (
        "compress",
        "data",
        "kd",
        "optimizer",
        "scheduler",
        "strategy",
        "student",
        "teacher",
        "train",
    ):
        assert re.search(rf"^{group}: \w", groups, re.MULTILINE)
    for verb in cli.VERBS:
        assert f"compresskd {verb} " in text
    assert "--verbose" in text
    assert "rank: 32" in text


def test_help_of_hydra(run_cli):
    assert "--multirun,-m : Run multiple jobs" in shown(run_cli("--hydra-help"))


def test_composed_configuration(run_cli):
    cfg = yaml.safe_load(shown(run_cli("--cfg", "job", "student=lenet5", "rank=7")))
    assert cfg["rank"] == 7
    assert cfg["student"]["_target_"] == "compresskd.models.lenet.LeNet5"
    assert cfg["strategy"]["stages"]["distill"]["objective"] == "${kd.objective}"
    resolved = yaml.safe_load(shown(run_cli("--cfg", "job", "--resolve", "kd.alpha=0.25")))
    terms = resolved["strategy"]["stages"]["distill"]["objective"]["terms"]
    assert terms["cross_entropy"]["weight"] == 0.75


def test_one_package_of_the_configuration(run_cli):
    assert "temperature: 4.0" in shown(run_cli("--cfg", "job", "--package", "kd"))


@pytest.mark.parametrize("what", ["defaults", "defaults-tree", "config", "searchpath", "plugins"])
def test_info(run_cli, what):
    assert shown(run_cli("--info", what)).strip()


def test_flags_may_stand_anywhere_among_overrides(run_cli):
    text = shown(run_cli("rank=7", "--cfg", "job", "seed=3"))
    assert yaml.safe_load(text)["rank"] == 7
    assert yaml.safe_load(text)["seed"] == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(run_cli, shell):
    script = shown(run_cli("--shell-completion", f"install={shell}"))
    assert "compresskd" in script
    assert "query=" in script


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("compresskd teacher=resnet5", {"teacher=resnet56"}),
        ("compresskd strategy=distill_then", {"strategy=distill_then_compress"}),
        ("compresskd kd.temp", {"kd.temperature="}),
        ("compresskd data=syn", {"data=synthetic"}),
    ],
)
def test_completion_offers(run_cli, monkeypatch, line, offered):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert offered <= set(shown(run_cli("-sc", "query=bash")).split())


def test_verbs_have_help(run_cli):
    for verb in cli.VERBS:
        outcome = run_cli(verb, "--help")
        assert outcome.status == 0
        assert f"usage: compresskd {verb}" in outcome.out


@pytest.mark.slow
def test_showing_imports_no_torch(run_program, work):
    """Help and refusals of the command line itself must be instant."""
    (work / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    for arguments in (
        ["--help"],
        ["--version"],
        ["--cfg", "job"],
        ["frobnicate"],
        ["--frobnicate"],
        ["compare"],
    ):
        outcome = run_program(*arguments, PYTHONPATH=f"{work}:{cli.__file__.rpartition('/compresskd/')[0]}")
        assert "torch was imported" not in outcome.err + outcome.out, arguments

"""What a command line shows instead of running: help, version, the configuration, completion."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from compresskd import __version__, cli, export
from compresskd.cli.parser import FORMS, VERBS
from compresskd.config.schema import DEFAULTS


def shown(outcome):
    assert outcome.status == 0, outcome.err
    assert outcome.err == ""
    assert outcome.left == []
    return outcome.out


def test_version(run_cli):
    assert shown(run_cli("--version")) == f"compresskd {__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_verbs_and_flags(run_cli, flag):
    text = shown(run_cli(flag))
    for verb in VERBS:
        assert re.search(rf"^ +{verb} +\w", text, re.MULTILINE)
    assert "--verbose" in text
    assert "--version" in text


def test_help_of_a_run_names_groups_and_keys(run_cli):
    text = shown(run_cli("run", "--help"))
    groups = text.partition("groups:")[2].partition("keys,")[0]
    for group in (
        "compress",
        "data",
        "kd",
        "optimizer",
        "scheduler",
        "strategy",
        "teacher, student",
        "train",
    ):
        assert re.search(rf"^ +{group}: \w", groups, re.MULTILINE)
    for name in DEFAULTS:
        assert re.search(rf"^ .*\b{name}[,:]", text, re.MULTILINE)
    assert text == shown(run_cli("rank=3", "--help"))


def test_help_fits_a_terminal_of_80_columns(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in ([], *([verb] for verb in VERBS)):
        lines = shown(run_cli(*arguments, "--help")).splitlines()
        assert lines[0].startswith("usage: compresskd")
        assert [line for line in lines if len(line) > 80] == []
        assert lines == [line.rstrip() for line in lines]


@pytest.mark.slow
def test_run_is_what_is_done_without_a_verb(run_cli):
    assert shown(run_cli("run", "--cfg", "job", "rank=7")) == shown(run_cli("rank=7", "--cfg", "job"))


def test_forms_of_export_are_those_that_there_are():
    assert tuple(export.FORMS) == FORMS


@pytest.mark.slow
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
    for verb in VERBS:
        outcome = run_cli(verb, "--help")
        assert outcome.status == 0
        assert outcome.out.startswith(f"usage: compresskd {verb if verb != 'run' else '[run]'} ")


@pytest.mark.slow
def test_showing_imports_no_torch(work):
    """Help and refusals of the command line itself must be instant. One process asks for all of them."""
    (work / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    commands = (
        ["--help"],
        ["run", "--help"],
        ["export", "--help"],
        ["bench", "--help"],
        ["--version"],
        ["--cfg", "job"],
        ["frobnicate"],
        ["--frobnicate"],
        ["compare"],
    )
    driver = (
        f"from compresskd.cli import main\nfor command in {commands}:\n"
        "    print(command, main(command), flush=True)"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", driver],
        env={**os.environ, "PYTHONPATH": f"{work}:{cli.__file__.rpartition('/compresskd/')[0]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    for arguments in commands:
        told = 2 if "frobnicate" in arguments[0] or arguments == ["compare"] else 0
        assert f"{arguments} {told}\n" in ended.stdout
    assert "torch was imported" not in ended.stdout

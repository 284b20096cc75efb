"""What all tests share: a fixed seed, and the command line run inside this process or in one of its own."""

import copy
import dataclasses
import functools
import gc
import logging
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import omegaconf.base
import pytest
import torch
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from refusals import name_of

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches the network; a look-up that fails is repeated for 45 s

import compresskd
from compresskd.cli import main
from compresskd.config.shipped import conf_dir

# Tests are small: a second thread only waits, and several test processes may share the cores.
torch.set_num_threads(1)
# A collection of garbage looks at all that was ever imported, for a tenth of the suite's time at the usual pace.
gc.set_threshold(10_000, 10, 10)
# Half of the time that it takes to build a job goes into parsing the same interpolations, once for each test.
omegaconf.base.parse = functools.cache(omegaconf.base.parse)


def _keep_compositions():
    """Let Hydra put the shipped files together once for each choice among them: most of a command's time goes there.

    Values are overridden anew for each test; what is composed with a folder of a test's own is not kept.
    """
    choose, merge = (
        config_loader_impl.create_defaults_list,
        ConfigLoaderImpl._compose_config_from_defaults_list,
    )
    chosen, merged = {}, {}

    def is_shipped(repo):
        sources = repo.get_sources()
        return all(s.scheme() in ("pkg", "structured") or s.path == str(conf_dir()) for s in sources)

    def kept_choice(repo, overrides_list, **options):
        plain = [o for o in overrides_list if not o.is_sweep_override()]
        values = [o for o in plain if isinstance(o.value(), dict) or not repo.group_exists(o.key_or_group)]
        key = (*(o.input_line for o in plain if all(o is not each for each in values)), *options.items())
        if not is_shipped(repo):
            return choose(repo=repo, overrides_list=overrides_list, **options)
        if key not in chosen:
            chosen[key] = choose(repo=repo, overrides_list=overrides_list, **options)
        return dataclasses.replace(copy.deepcopy(chosen[key]), config_overrides=values)

    def kept_merge(self, defaults, repo):
        key = repr(defaults)
        if not is_shipped(repo):
            return merge(self, defaults=defaults, repo=repo)
        if key not in merged:
            merged[key] = merge(self, defaults=defaults, repo=repo)
        return copy.deepcopy(merged[key])

    config_loader_impl.create_defaults_list = kept_choice
    ConfigLoaderImpl._compose_config_from_defaults_list = kept_merge


_keep_compositions()


def pytest_configure(config):
    # Files of few tests are the slow ones: sorted by the number of tests, two workers would end with one at work.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_make_parametrize_id(val):
    return name_of(val) or None if isinstance(val, re.Pattern) else None


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """Ctrl-C means what it does in a terminal, to this process and its children, though the parent ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@dataclass(frozen=True)
class Outcome:
    """How a command line ended: exit code, what it wrote, and the files that it left where it ran."""

    status: int
    out: str
    err: str
    left: list[str]


@pytest.fixture(autouse=True)
def _own_key(tmp_path_factory, monkeypatch):
    """The key that runs are signed with is the tests' own, never that of who runs them."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder that commands are run in."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run_cli(work, monkeypatch, capsys):
    """run_cli('rank=0', ...) -> Outcome, inside this process; nothing of it is left in the process afterwards."""

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # which the program sets for its children
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")  # and this, too
    monkeypatch.setattr(sys, "argv", ["compresskd"])
    store, modules, log = ConfigStore.instance(), set(sys.modules), logging.getLogger("compresskd")
    Plugins.instance()  # which adds to the store when it is first asked for
    stored = {group: dict(nodes) for group, nodes in store.repo.items() if isinstance(nodes, dict)}
    repo, handlers, propagate = {**store.repo, **stored}, list(log.handlers), log.propagate
    root = logging.getLogger()
    root_handlers, root_level = list(root.handlers), root.level

    def run(*arguments):
        before = _files(work)
        capsys.readouterr()
        status = main(list(arguments))
        written = capsys.readouterr()
        return Outcome(status, written.out, written.err, sorted(_files(work) - before))

    yield run
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    store.repo, log.handlers, log.propagate = repo, handlers, propagate
    root.handlers = root_handlers
    root.setLevel(root_level)
    for name in set(sys.modules) - modules:
        if str(work.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def run_program(work):
    """run_program('rank=0', ...) -> Outcome, of `python -m compresskd` as a process of its own."""

    def run(*arguments, **environment):
        before = _files(work)
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "compresskd", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(compresskd.__file__).parents[1]),
                **environment,
            },
        )
        return Outcome(ended.returncode, ended.stdout, ended.stderr, sorted(_files(work) - before))

    return run


def _files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}

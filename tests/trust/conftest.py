"""Runs that are made once and copied for each test."""

import shutil
import sys

import pytest
from runs_to_tamper import OWN, TINY, write_own


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def key(tmp_path, monkeypatch):
    """The file of this user's key, which the first run makes."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "compresskd" / "key"


@pytest.fixture
def shipped(run_cli, work, kept):
    """The folder of a finished run that needs nothing but compresskd."""
    if not (kept / "shipped").exists():
        outcome = run_cli(*TINY, "hydra.run.dir=run")
        assert outcome.status == 0, outcome.err
        shutil.copytree(work / "run", kept / "shipped")
        shutil.rmtree(work / "run")
        shutil.rmtree(work / "outputs")
    shutil.copytree(kept / "shipped", work / "run")
    return work / "run"


@pytest.fixture
def own(run_cli, work, key):
    """The folder of a finished run of this user's own code, which lies where commands are run."""
    write_own(work)
    outcome = run_cli(*OWN, "hydra.run.dir=run")
    assert outcome.status == 0, outcome.err
    return work / "run"


@pytest.fixture
def forget(work):
    """forget() lets the user's modules be looked for and imported anew, as another process would."""

    def forget():
        sys.path[:] = [place for place in sys.path if not place.startswith(str(work))]
        for name in ("own_net", "own_parts", "evil_net"):
            sys.modules.pop(name, None)

    yield forget
    forget()

"""What a record says of where it was made."""

import os
import platform
import subprocess

import pytest
import torch

from compresskd.engine import environment


def git(folder, *arguments):
    who = {
        f"GIT_{role}_{what}": "t@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, env={**clean, **who}
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_versions():
    found = environment.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert {"compresskd", "numpy", "safetensors"} <= found.keys()


def test_a_package_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(environment, "_PACKAGES", ("torch", "no-such-package"))
    assert list(environment.versions()) == ["python", "compresskd", "torch"]


def test_git_revision_and_changes(repository):
    revision = git(repository, "rev-parse", "HEAD")
    assert environment.git_revision() == {"revision": revision, "dirty": False}
    (repository / "file").write_text("2")
    assert environment.git_revision() == {"revision": revision, "dirty": True}


def test_git_without_commits_or_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert environment.git_revision() is None
    git(tmp_path, "init", "-q")
    assert environment.git_revision() is None


def test_no_git_at_all(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.git_revision() is None


def test_hardware_tells_machines_apart_without_naming_them(monkeypatch):
    found = environment.hardware(torch.device("cpu"))
    assert found["num_threads"] == torch.get_num_threads()
    assert (found["device"], found["gpu"]) == ("cpu", None)
    instructions = torch.backends.cpu.get_cpu_capability()  # one name stands for several processors
    assert found["cpu"].endswith(f" ({instructions})")
    assert platform.node() not in found.values()
    monkeypatch.setattr(environment.socket, "gethostname", lambda: "another")
    assert environment.hardware(torch.device("cpu"))["hostname_hash"] != found["hostname_hash"]


def test_memory_is_kept_where_the_allocator_is_glibc():
    import platform

    from compresskd.engine.environment import keep_freed_memory

    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")

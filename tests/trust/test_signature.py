"""A user's own runs go on without a flag, moved or not; changed, copied or of another key they do not."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
from runs_to_tamper import OWN, change, record_of, unfinish, without_fingerprints, write_own

import compresskd
from compresskd.targets.paths import Untrusted
from compresskd.trust.sources import source_digests

RUN = ("evaluate", "run")


@pytest.fixture
def command(run_cli, forget):
    """command('evaluate', 'run') -> Outcome, with the user's modules imported anew."""

    def command(*arguments):
        forget()
        return run_cli(*arguments)

    return command


def refused(outcome, *reasons, package="own_net"):
    assert outcome.status == 2, outcome.out
    assert f"write --trust {package}" in outcome.err
    for reason in reasons:
        assert reason in outcome.err, outcome.err
    assert package not in sys.modules


def test_own_runs_need_no_flag(command, own, key, work):
    signature = record_of(own)["signature"]
    assert signature["packages"] == ["own_net"]
    assert list(signature["sources"]) == ["own_net.py", "own_parts.py"]
    assert set(signature["structures"]) == {
        "checkpoints/train/structure.json", "model/structure.json", "model/model.ckd",
    }  # fmt: skip
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert command(*RUN).status == 0
    assert command("export", "run", "--to", "dense").status == 0
    assert type(compresskd.load(own)).__name__ == "Net"
    change(own, lambda record: (unfinish(record), record["stages"].clear()))
    outcome = command("resume", "run")
    assert outcome.status == 0, outcome.err
    assert command(*RUN).status == 0


def test_moved_with_and_without_its_code(command, own, work, monkeypatch):
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    own.rename(elsewhere / "moved")
    assert command("evaluate", "elsewhere/moved").status == 0
    for name in ("own_net.py", "own_parts.py"):
        (work / name).rename(elsewhere / name)
    monkeypatch.chdir(elsewhere)
    assert command("evaluate", "moved").status == 0


def test_a_module_in_its_place_in_another_folder_is_not_taken_for_it(command, own, work, monkeypatch):
    other = work / "other"
    other.mkdir()
    own.rename(other / "run")
    (other / "own_net.py").write_text(f"open({str(work / 'mark')!r}, 'w')\n")
    monkeypatch.chdir(other)
    refused(command(*RUN), "own_net.py changed since you ran it")
    shutil.rmtree(other / "own_net.py", ignore_errors=True)
    (other / "own_net.py").unlink()
    package = other / "own_net"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(work / 'mark')!r}, 'w')\n")
    refused(command(*RUN), "own_net/__init__.py changed since you ran it")
    assert not (work / "mark").exists()


@pytest.mark.parametrize("name", ["own_net.py", "own_parts.py"])
def test_edited_code_is_named(command, own, work, name):
    with (work / name).open("a") as file:
        file.write("\n# changed\n")
    refused(command(*RUN), f"{name} changed since you ran it")
    refused(command("export", "run", "--to", "dense"), f"{name} changed since you ran it")
    assert command(*RUN, "--trust", "own_net").status == 0
    change(own, unfinish)
    refused(command("resume", "run"), "student._target_: 'own_net.Net'", f"{name} changed since you ran it")
    assert command("resume", "run", "--trust=own_net").status == 0
    assert command(*RUN).status == 0  # the word was said, and the run is signed with the code as it is now


EDITS = {
    "configuration": lambda r: r["config"].update(seed=7),
    "data": lambda r: r["config"]["data"].update(split_seed=9),
    "packages": lambda r: r["signature"]["packages"].append("os"),
    "packages of a stage": lambda r: r["stages"][0]["packages"].append("os"),
    "sources": lambda r: r["signature"]["sources"].clear(),
    "structures": lambda r: r["signature"]["structures"].clear(),
    "hmac": lambda r: r["signature"].update(hmac="0" * 64),
    "hmac of another type": lambda r: r["signature"].update(hmac=["é"]),
    "no signature": lambda r: r.update(signature=None),
    "another signature": lambda r: r.update(signature={"x": 1}),
    "signature of another type": lambda r: r.update(signature="x"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_record(command, own, name):
    change(own, EDITS[name])
    refused(command(*RUN), "(")
    with pytest.raises(Untrusted):
        compresskd.load(own)


def test_a_checkpoint_that_lies_elsewhere_is_in_no_record(command, own):
    change(own, lambda r: r["stages"][0].update(checkpoint="checkpoints/../model"))
    outcome = command(*RUN)
    assert outcome.status == 2
    assert "stages[0].checkpoint: expected checkpoints/NAME" in outcome.err


def test_figures_and_times_are_not_covered(command, own):
    change(own, lambda r: r.update(wall_seconds=1.0, updated="today"))
    assert command(*RUN).status == 0


@pytest.mark.parametrize(
    "name", ["checkpoints/train/structure.json", "model/structure.json", "model/model.ckd"]
)
def test_an_edited_structure(command, own, name):
    with (own / name).open("ab") as file:
        file.write(b" ")
    change(own, without_fingerprints)
    refused(command(*RUN), f"{name} is not as you left it")


def test_another_user(command, own, key):
    key.write_bytes(bytes(32))
    refused(command(*RUN), "not signed by you")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660])
def test_a_key_that_others_can_use(command, own, key, mode):
    key.chmod(mode)
    refused(command(*RUN), f"make it yours alone: chmod 600 {key}")


def test_no_key_and_a_damaged_one(command, own, key):
    key.write_bytes(b"short")
    refused(command(*RUN), "is damaged; remove it")
    key.unlink()
    refused(command(*RUN), "there is no key of yours")
    assert not key.exists()  # reading makes none


def test_where_no_key_can_be_made_runs_work_and_say_so_once(run_cli, work, forget, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file" / "config"))
    write_own(work)
    outcome = run_cli(*OWN, "hydra.run.dir=run")
    assert outcome.status == 0, outcome.err
    assert (outcome.out + outcome.err).replace("\n", " ").count("not signed: ") == 1
    forget()
    refused(run_cli(*RUN), "the run is not signed by you")
    assert run_cli(*RUN, "--trust", "own_net").status == 0


def test_a_record_of_before_signatures(command, own):
    change(own, lambda r: r.pop("signature"))
    refused(command(*RUN), "the run is not signed by you")
    assert command(*RUN, "--trust", "own_net").status == 0


def test_killed_between_the_last_model_and_its_record(command, own):
    """model/ is there, the record does not know it yet: the run goes on, and nobody loads what is not covered."""

    def as_killed(record):
        unfinish(record)
        for name in ("model/structure.json", "model/model.ckd"):
            record["signature"]["structures"].pop(name)

    record = record_of(own)
    change(own, unfinish)
    with pytest.raises(ValueError, match="is not finished"):
        compresskd.load(own)
    outcome = command("resume", "run")
    assert outcome.status == 0, outcome.err
    assert record_of(own)["signature"]["structures"].keys() == record["signature"]["structures"].keys()
    change(own, as_killed)  # by hand, which the signature notices
    refused(command("resume", "run"), "not signed by you")


def test_sources_follow_imports_within_the_users_folders(tmp_path, monkeypatch):
    package = tmp_path / "deep_pkg"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import inner\n")
    (package / "inner" / "__init__.py").write_text("def late():\n    import deep_helper, torch, json\n")
    (tmp_path / "deep_helper.py").write_text("import deep_pkg\n")
    (tmp_path / "unrelated.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(source_digests(["deep_pkg", "torch", "os", "nowhere"])) == [
        "deep_helper.py", "deep_pkg/__init__.py", "deep_pkg/inner/__init__.py",
    ]  # fmt: skip


def test_signing_runs_no_code_of_the_users(tmp_path):
    (tmp_path / "loud.py").write_text("raise SystemExit('imported')\n")
    code = "from compresskd.trust.sources import source_digests; print(list(source_digests(['loud'])))"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(compresskd.__file__))}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.strip() == "['loud.py']", ended.stderr

"""What a directory asks to run is not run, whichever verb opens it: exit code 2, what it asked for named."""

import json

import pytest
from refusals import told
from runs_to_tamper import change, record_of, unfinish, without_fingerprints

import compresskd
from compresskd.artifact.folder import digest
from compresskd.options import shown
from compresskd.targets.paths import Untrusted

VERBS = {
    "evaluate": ("evaluate", "run"),
    "export": ("export", "run", "--to", "dense"),
    "resume": ("resume", "run"),
    "bench": ("bench", "run", "--batch", "1"),
}


def _build(mark):
    kwargs = {"command": f"touch {mark}"}
    return {"_target_": "compresskd.models.build.build", "target": "os.system", "kwargs": kwargs, "seed": 0}


def _system(mark):
    return {"_target_": "os.system", "command": f"touch {mark}"}


def _open(mark):
    return {"_target_": "builtins.open", "file": str(mark), "mode": "w"}


def _module(mark):
    (mark.parent / "evil_net.py").write_text(f"open({str(mark)!r}, 'w')\nclass Net: pass\n")
    return {"_target_": "evil_net.Net"}


def _partial(mark):
    return {"_target_": "functools.partial", "_args_": [_system(mark)]}


def _through_us(mark):
    return {"_target_": "compresskd.engine.environment.subprocess.run", "args": ["touch", str(mark)]}


def _hub(mark):
    (mark.parent / "hubconf.py").write_text(f"def net():\n    open({str(mark)!r}, 'w')\n")
    return {"_target_": "torch.hub.load", "repo_or_dir": str(mark.parent), "model": "net", "source": "local"}


def _program(mark):
    return {"_target_": "compresskd.__main__.main"}


NODES = [_build, _system, _open, _module, _partial, _through_us, _hub, _program]


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "work" / "mark"


def refused(outcome, mark, *words):
    assert not mark.exists()
    told(outcome, *words)


PLACES = {
    "data": lambda config, node: config.update(data=node),
    "data.augmentation": lambda config, node: config["data"].update(augmentation=node),
    "data.extra": lambda config, node: config["data"].update(extra=[node]),
    "student": lambda config, node: config.update(student=node),
    "teacher": lambda config, node: config.update(teacher=node),
    "student.hidden": lambda config, node: config["student"].update(hidden=[node]),
    "student._args_": lambda config, node: config["student"].update(_args_=[node]),
    "strategy.stages.distill": lambda config, node: config["strategy"]["stages"].update(distill=node),
    "strategy.stages.distill.objective": lambda config, node: config["strategy"]["stages"]["distill"].update(
        objective=node
    ),
    "strategy.stages.factorize.compression": lambda config, node: config["strategy"]["stages"][
        "factorize"
    ].update(how=node),
    "kd.objective.terms.cross_entropy": lambda config, node: config["kd"]["objective"]["terms"].update(
        cross_entropy=node
    ),
    "compress": lambda config, node: config.update(compress=node),
    "optimizer": lambda config, node: config.update(optimizer={**node, "_partial_": False}),
    "scheduler": lambda config, node: config.update(scheduler=node),
    "teacher_fit.optimizer": lambda config, node: config["teacher_fit"].update(optimizer=node),
    "rank_schedule": lambda config, node: config.update(rank_schedule=node),
    "total_epochs": lambda config, node: (
        config.update(total_epochs=4),
        config["strategy"]["stages"].update(
            more={"_target_": "compresskd.stages.MultiStage", "epochs": 1, "stages": node}
        ),
    ),
}


@pytest.mark.parametrize("make", NODES, ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_data_of_a_record(run_cli, shipped, mark, verb, make):
    node = make(mark)
    change(shipped, lambda record: record["config"].update(data=node))
    refused(run_cli(*VERBS[verb]), mark, "data._target_: ", node["_target_"])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", [_build, _system, _module], ids=lambda f: f.__name__[1:])
def test_every_place_of_a_configuration_on_resume(run_cli, shipped, mark, place, make):
    node = make(mark)
    change(shipped, lambda record: (unfinish(record), PLACES[place](record["config"], node)))
    refused(
        run_cli("resume", "run"), mark, f"_target_: {'' if make is _build else chr(39)}{node['_target_']}"
    )


@pytest.mark.parametrize("make", [_build, _system, _hub, _partial], ids=lambda f: f.__name__[1:])
def test_trust_in_a_package_is_no_trust_in_all_that_can_be_called(run_cli, shipped, mark, make):
    """Even who says the word runs data, models and stages, and nothing else."""
    node = make(mark)
    change(shipped, lambda record: record["config"].update(data=node))
    packages = "--trust=os,torch,functools,builtins"
    refused(run_cli("evaluate", "run", packages), mark, "data._target_: ", "expected a function that returns")
    change(shipped, lambda record: (unfinish(record), record["config"].update(student=node)))
    refused(run_cli("resume", "run", packages), mark, node["_target_"])


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "make", [_build, _system, _module, _through_us, _hub, _program], ids=lambda f: f.__name__[1:]
)
@pytest.mark.parametrize("place", ["architecture", "nested", "module"])
def test_structure_files_with_trust_taken_from_the_record(run_cli, shipped, mark, verb, make, place):
    node = make(mark)
    path, options = node["_target_"], {k: v for k, v in node.items() if k != "_target_"}

    def tamper(described):
        if place == "architecture":
            described["architecture"] = {"target": path, "kwargs": options}
        elif place == "nested":
            described["architecture"]["kwargs"]["hidden"] = [node]
        else:
            described["modules"]["fc1"] = {**options, "class": path}

    for folder in [*(shipped / "checkpoints").iterdir(), shipped / "model"]:
        if folder.is_dir():
            described = json.loads((folder / "structure.json").read_text())
            tamper(described)
            described["sha256"] = digest((folder / "model.safetensors").read_bytes(), described)
            (folder / "structure.json").write_text(json.dumps(described))

    def edit(record):
        without_fingerprints(record)
        for role in ("student", "teacher") if verb != "resume" else ():
            record["config"][role]["_target_"] = path
        for entry in record["stages"]:
            entry["packages"] = [path.partition(".")[0]]
        if verb == "resume":
            unfinish(record)

    change(shipped, edit)
    outcome = run_cli(*VERBS[verb])
    assert outcome.status in (1, 2), outcome.out
    assert not mark.exists()
    assert path in outcome.err
    if not path.startswith("compresskd."):
        assert outcome.status == 2, outcome.err
        assert f"--trust {path.partition('.')[0]}" in outcome.err
    with pytest.raises(ValueError, match=path.replace(".", r"\.")):
        compresskd.load(shipped / record_of(shipped)["stages"][-1]["checkpoint"])
    assert not mark.exists()


def test_load_of_a_directory(shipped, mark):
    path = shipped / "model" / "structure.json"
    described = json.loads(path.read_text())
    described["architecture"] = {"target": _module(mark)["_target_"], "kwargs": {}}
    described["sha256"] = digest((shipped / "model" / "model.safetensors").read_bytes(), described)
    path.write_text(json.dumps(described))
    with pytest.raises(Untrusted, match=r"evil_net.*trust=\('evil_net',\).*not signed by you"):
        compresskd.load(shipped)
    assert not mark.exists()


@pytest.mark.parametrize("verb", ["evaluate", "resume", "export"])
@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.decode:1}", "${data.name}", "x${now:%Y}"])
def test_a_record_holds_values_only(run_cli, shipped, verb, text):
    change(
        shipped,
        lambda record: (record["config"]["data"].update(name=text), verb == "resume" and unfinish(record)),
    )
    outcome = run_cli(*VERBS[verb])
    assert outcome.status == 2, outcome.out
    assert f"data.name: got {text!r}; a record holds no ${{...}}" in outcome.err


@pytest.mark.parametrize("value", [None, "x", 3, [], [{"_target_": "os.system"}]], ids=str)
@pytest.mark.parametrize("group", ["data", "student", "kd", "strategy"])
def test_a_group_that_is_none(run_cli, shipped, group, value):
    change(
        shipped,
        lambda record: (record["config"].update({group: value}), group != "data" and unfinish(record)),
    )
    outcome = run_cli("evaluate" if group == "data" else "resume", "run")
    assert outcome.status == 2, outcome.out
    assert f"{group}: got {shown(value)}, expected a mapping of options" in outcome.err
    assert "Traceback" not in outcome.err


def test_files_of_hydra_in_a_directory_are_not_read(run_cli, shipped, mark):
    text = f"hydra:\n  callbacks:\n    x: {{_target_: os.system, command: touch {mark}}}\n"
    (shipped / "config.yaml").write_text(text)
    (shipped / ".hydra").mkdir()
    (shipped / ".hydra" / "config.yaml").write_text(text)
    outcome = run_cli("evaluate", "run")
    assert outcome.status == 0, outcome.err
    assert not mark.exists()


@pytest.mark.slow
def test_untouched_it_needs_no_flag_and_no_key(run_cli, shipped, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nowhere")
    assert record_of(shipped)["signature"] is None
    for verb in ("evaluate", "export", "bench"):
        outcome = run_cli(*VERBS[verb])
        assert outcome.status == 0, outcome.err
    change(shipped, lambda record: (unfinish(record), record["stages"].pop()))
    assert run_cli("resume", "run").status == 0
    assert compresskd.load(shipped).fc1 is not None


@pytest.mark.parametrize("said", ["--trust", "--trust=", "--trust=a,", "--trust=a.b", "--trust=./a"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_flag_says_what_to_write(run_cli, shipped, verb, said):
    outcome = run_cli(*VERBS[verb], said)
    assert outcome.status == 2
    assert "--trust" in outcome.err + outcome.out

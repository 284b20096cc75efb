"""What people compress, tried: python benchmarks/architectures.py [--only bert,timm_resnet18] [--timeout 600].

Each architecture of tests/small_architectures.py, in a process of its own, goes through the columns of the table: at
full rank every layer that may be is factorized and the outputs are the same (1e-4 of their norm); `rank=4`; `bits=4`;
both together are stored once, in both forms, and read back equal; a run of `strategy=compress rank=4 bits=4` is scored
again from its folder, as `compresskd evaluate` does, and exported to ONNX, which answers the same. A cell is "yes", or
the error. The last columns say how many weights took another form, and which parts of the bytes no rule covers.

Another column is a function of a `Case` added to COLUMNS: it returns what its cell says, and may raise.
"""

import argparse
import copy
import json
import logging
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import small_architectures

import compresskd
from compresskd import artifact, layers, measure
from compresskd.api.samples import data_of
from compresskd.artifact.content import content_of
from compresskd.config.build import resolved
from compresskd.config.compose import compose_jobs
from compresskd.config.parts import Parts
from compresskd.data import Data, TensorSplit
from compresskd.engine.experiment import Experiment
from compresskd.export import export, open_source
from compresskd.export.samples import drawn_from
from compresskd.listeners.console import Reporter
from compresskd.measure.coverage import coverage
from compresskd.models.build import build
from compresskd.reports.evaluate import evaluate_run
from compresskd.run import open_run, read_record
from compresskd.tasks import Classification, TokenClassification

TRUST = ("small_architectures",)
TOLERANCE = 1e-4  # of the norm of the outputs
FULL = 10**6  # more than any rank
NUM_SAMPLES = 64


@dataclass
class Case:
    """One architecture on its way through the columns."""

    name: str
    folder: Path
    notes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def model(self) -> nn.Module:
        """As it is built, in evaluation mode."""
        return build("small_architectures.build", {"name": self.name}, seed=0).eval()

    @cached_property
    def inputs(self) -> Tensor:
        """Three samples."""
        return small_architectures.inputs(self.name)

    @cached_property
    def small(self) -> nn.Module:
        """The model at rank 4 and 4 bits."""
        return compresskd.quantize(self.compressed(rank=4), self.inputs, bits=4, core_start="nearest").eval()

    @cached_property
    def data(self) -> Data:
        """Random samples, whose targets are what the model itself says: one for each sample, or for each position."""
        inputs = small_architectures.inputs(self.name, batch_size=NUM_SAMPLES)
        targets = self.answer(self.model, inputs).argmax(-1)
        splits = {
            name: replace(split, targets=targets, fingerprint=self.name)
            for name, split in vars(data_of(inputs)).items()
            if isinstance(split, TensorSplit)
        }
        task = TokenClassification() if targets.ndim > 1 else Classification()
        num_classes = self.answer(self.model).shape[-1]
        return replace(data_of(inputs), num_classes=num_classes, task=task, **splits)

    @cached_property
    def run(self) -> Path:
        """The folder of a finished run of `strategy=compress rank=4 bits=4`, nothing trained."""
        typed = [
            "strategy=compress",
            "strategy.stages.factorize.source=student",
            "kd=none",
            "rank=4",
            "bits=4",
        ]
        (job,) = compose_jobs([*typed, "epochs=0", "measure.latency=false"]).jobs
        config = resolved(job.config)
        config["data"]["input_shape"] = list(self.data.input_shape)
        parts = Parts(config)
        strategy, recipe = parts.strategy(), parts.recipe(config)
        parts.stop_at_faults()
        assert strategy is not None and recipe is not None  # noqa: PT018 - else there were faults
        experiment = Experiment(
            self.data, lambda: copy.deepcopy(self.model), strategy, recipe, seed=0, device=torch.device("cpu"),
            measure_latency=False, config=config, trust=TRUST,
        )  # fmt: skip
        opened = open_run(self.folder / "run")
        try:
            experiment.run(opened, Reporter())
        finally:
            opened.close()
        return opened.directory

    def compressed(self, **options: object) -> nn.Module:
        """The model factorized."""
        return compresskd.compress(self.model, self.inputs, method="svd", **options).eval()  # pyright: ignore

    def answer(self, model: nn.Module, inputs: Tensor | None = None) -> Tensor:
        """Of a model to the inputs."""
        with torch.no_grad():
            return model(self.inputs if inputs is None else inputs)


def full_rank(case: Case) -> str:
    """Every layer that may be is factorized, and nothing changes."""
    model = case.compressed(rank=FULL, keep_larger=True)
    found = [layer for layer in layers.find(model) if layers.is_factorized(layer.module)]
    case.notes["factorized"] = f"{len(found)} of {len(layers.find(case.model))}"
    case.notes["left"] = _left(model)
    before, after = case.answer(case.model), case.answer(model)
    error = float((after - before).norm() / before.norm())
    assert error <= TOLERANCE, f"relative error {error:.1g}"
    return "yes"


def rank_4(case: Case) -> str:
    """The model gets smaller, tied parameters are counted once, and the outputs are numbers."""
    model = case.compressed(rank=4)
    assert bool(case.answer(model).isfinite().all()), "outputs that are no numbers"
    share = measure.num_parameters(model) / measure.num_parameters(case.model)
    assert share < 1, f"{share:.2f} of the parameters"
    case.notes["rank=4"] = f"{share:.2f}"
    return "yes"


def bits_4(case: Case) -> str:
    """The model takes little more than an eighth of its bytes, where a rule covers all of it."""
    model = compresskd.quantize(case.model, case.inputs, bits=4).eval()
    assert bool(case.answer(model).isfinite().all()), "outputs that are no numbers"
    case.notes["bits=4"] = f"{artifact.bytes_of(model) / artifact.bytes_of(case.model):.2f}"
    return "yes"


def save(case: Case) -> str:
    """Stored once in both forms: tied values too."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(case.model, Path(folder) / "model")
        stored = sum(file.stat().st_size for file in (Path(folder) / "model").iterdir())
    state = case.model.state_dict(keep_vars=True)
    held = sum(v.numel() * v.element_size() for v in {id(v): v for v in state.values()}.values())
    assert stored < 1.1 * held + 300 * len(state), f"{stored:,} bytes for {held:,}"
    return "yes"


def load(case: Case) -> str:
    """Read back equal, from both forms, at rank 4 and 4 bits."""
    before, content = case.answer(case.small), content_of(case.small)
    with tempfile.TemporaryDirectory() as folder:
        artifact.folder.write(content, Path(folder))
        artifact.write_compact(content, Path(folder) / "model.ckd", trust=TRUST)
        for path in (Path(folder), Path(folder) / "model.ckd"):
            model = artifact.load(path, trust=TRUST)
            assert torch.equal(case.answer(model), before), "other outputs"
            assert measure.num_parameters(model) <= measure.num_parameters(case.small), "more parameters"
    return "yes"


def evaluate(case: Case) -> str:
    """The recorded score of a run is reproduced from its folder."""
    verdict = evaluate_run(case.run, read_record(case.run), case.data, trust=TRUST)
    assert verdict.reproduced, str(verdict)
    return "yes"


def onnx(case: Case) -> str:
    """Exported, and the file answers as the model of the run does."""
    samples = drawn_from(case.data.test, 16, case.name)
    export(open_source(case.run, trust=TRUST), "onnx", case.run / "model.onnx", samples, timed=False)
    return "yes"


COLUMNS: Mapping[str, Callable[[Case], str]] = {
    "full rank equal": full_rank,
    "rank=4": rank_4,
    "bits=4": bits_4,
    "save": save,
    "load": load,
    "evaluate": evaluate,
    "ONNX": onnx,
}
NOTES = {"factorized": "factorized", "left": "no rule covers (share of bytes)", "rank=4": "parameters, rank=4",
         "bits=4": "bytes, bits=4"}  # fmt: skip


def _left(model: nn.Module) -> str:
    """Matrices that no rule covers, by their kind, with the share of the bytes of all."""
    found = coverage(model, content_of(model).tensors, {})
    shares: dict[str, float] = {}
    for each in found.values():
        if each.get("is_matrix") and not each["covered"]:
            shares[each["kind"]] = shares.get(each["kind"], 0.0) + each["share"]
    return ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()) or "none"


def run(name: str) -> dict[str, str]:
    """The cells of one architecture."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        case = Case(name, Path(folder))
        for title, column in COLUMNS.items():
            try:
                cells[title] = column(case)
            except Exception as error:
                traceback.print_exc()
                cells[title] = f"{type(error).__name__}: {error}".partition("\n")[0][:100].replace("|", "/")
    return cells | {title: case.notes.get(key, "") for key, title in NOTES.items()}


def in_own_process(name: str, timeout: float) -> dict[str, str]:
    """The cells of one architecture, run in another process."""
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(COLUMNS, f"over {timeout:.0f} s")
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return dict.fromkeys(COLUMNS, f"ended with {done.returncode}: {done.stderr.strip()[-100:]}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each architecture")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.one)))
        return
    titles = [*COLUMNS, *NOTES.values()]
    print("| architecture | " + " | ".join(titles) + " |")
    print("|---" * (len(titles) + 1) + "|")
    names = options.only.split(",") if options.only else list(small_architectures.ARCHITECTURES)
    green = 0
    for name in names:
        cells = in_own_process(name, options.timeout)
        green += all(cells[title] == "yes" for title in COLUMNS if title != "ONNX")
        print(f"| {name} | " + " | ".join(cells.get(title, "") for title in titles) + " |", flush=True)
    print(f"\n{green} of {len(names)} are green in every column but ONNX")


if __name__ == "__main__":
    main()

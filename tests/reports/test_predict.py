"""`predict`: raw samples become inputs as the training data did."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compresskd.artifact.preprocess import Preprocess
from compresskd.reports.predict import CannotPredict, predict, write_rows
from compresskd.tasks import call

IMAGES = {"input_shape": [1, 4, 4], "mean": [0.5], "std": [0.25], "class_names": ["cat", "dog"]}


@pytest.fixture
def by_brightness():
    """Says 'dog' of bright images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight[0].fill_(-1.0)
        model[1].weight[1].fill_(1.0)
        model[1].bias.zero_()
    return model.eval()


def test_images_are_scaled_and_normalised(tmp_path):
    levels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    Image.fromarray(levels).save(tmp_path / "a.png")
    expected = (torch.from_numpy(levels).float() / 255 - 0.5) / 0.25
    preprocess = Preprocess(IMAGES)
    for sample in (tmp_path / "a.png", Image.fromarray(levels), levels, levels.astype(np.float32) / 255):
        assert torch.allclose(preprocess([sample])[0, 0], expected)


def test_an_image_of_another_size_is_resized():
    large = Image.new("RGB", (8, 8), (255, 255, 255))
    assert torch.allclose(Preprocess(IMAGES)([large]), torch.full((1, 1, 4, 4), 2.0))


def test_samples_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 4, 4\].*\[1, 5, 5\]"):
        Preprocess(IMAGES)([np.zeros((5, 5))])


def test_a_folder_of_images_is_judged_in_order(by_brightness, tmp_path):
    for name, level in (("b.png", 255), ("a.png", 0)):
        Image.new("L", (4, 4), level).save(tmp_path / name)
    rows = list(predict(by_brightness, IMAGES, tmp_path))
    assert [row["class"] for row in rows] == ["cat", "dog"]
    assert [row["sample"] for row in rows] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert all(row["probability"] > 0.99 for row in rows)


def table_about(task, names, **more):
    columns = [{"name": "x", "mean": 1.0, "std": 2.0}, {"name": "k", "categories": ["p", "q"]}]
    preprocessing = {"kind": "table", "columns": columns, **more}
    return {"preprocessing": preprocessing, "task": task, "class_names": names}


def test_values_of_a_table_are_given_in_their_own_units(tmp_path):
    (tmp_path / "new.csv").write_text("k,x\np,3\nq,1\n")
    about = table_about("regression", ["price"], targets={"names": ["price"], "mean": [10.0], "std": [5.0]})
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0, 2.0]]))
        model.bias.zero_()
    rows = list(predict(model, about, tmp_path / "new.csv", batch_size=1))
    assert [row["price"] for row in rows] == pytest.approx([10 + 5 * 1.0, 10 + 5 * 2.0])


def test_labels_are_named(tmp_path):
    (tmp_path / "new.csv").write_text("k,x\np,3\n")
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([3.0, -3.0]))
    (row,) = predict(model, table_about("multi_label", ["red", "blue"]), tmp_path / "new.csv")
    assert row["labels"] == "red"
    assert row["blue"] == pytest.approx(0.0474, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("new.csv", "k\np\n", "columns"), ("new.txt", "k", "file of"), ("gone.csv", None, "not there")],
)
def test_files_that_do_not_fit_are_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CannotPredict, match=said):
        list(predict(nn.Linear(3, 1), table_about("regression", ["y"]), tmp_path / name))


def test_cells_are_no_formulas():
    out = io.StringIO()
    assert write_rows(iter([{"sample": "=1+1", "class": "a"}, {"sample": "b,c", "class": "d"}]), out) == 2
    assert list(csv.reader(io.StringIO(out.getvalue()))) == [
        ["sample", "class"],
        ["'=1+1", "a"],
        ["b,c", "d"],
    ]


@pytest.mark.slow
def test_a_run_predicts_what_it_scored(run_cli, work):
    rows = [f"{x},{'ab'[x % 2]},{2 * x + 3 * (x % 2)}" for x in range(120)]
    (work / "t.csv").write_text("\n".join(["x,kind,y", *rows]))
    status = run_cli(
        "task=regression", "data=table", "data.path=t.csv", "data.target=y", "strategy=train", "epochs=2",
        "measure.latency=false", "hydra.run.dir=run",
    ).status  # fmt: skip
    assert status == 0
    outcome = run_cli("predict", "run", "t.csv")
    assert outcome.status == 0, outcome.err
    said = [float(line) for line in outcome.out.split()[1:]]
    from compresskd import load

    model = load(work / "run")
    values = {"x": list(range(120)), "kind": ["ab"[x % 2] for x in range(120)]}
    scale = model.preprocess.about["preprocessing"]["targets"]
    with torch.no_grad():
        direct = call(model, model.preprocess(values))[:, 0] * scale["std"][0] + scale["mean"][0]
    assert said == pytest.approx(direct.tolist(), rel=1e-5)

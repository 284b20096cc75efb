"""The same distillation by torchdistill, and by the loop that a user would write: the peers of torchdistill_distill.py.

torchdistill's side follows the example script of its repository (examples/torchvision/image_classification.py): a
`DistillationBox`, a `MetricLogger` around each epoch, top-1 and top-5 accuracy on validation, a checkpoint
whenever that is the best so far. It is given the teacher in evaluation mode, which the script leaves to its user.
Its release 1.1.5 keeps no teacher outputs (earlier ones wrote them to files): the teacher runs in every step.
"""

import copy
import time
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from compresskd.data.base import Split

# torchvision's compiled operators do not load beside every torch; to import it, their declarations are enough. No
# operator of the two is called here.
_DECLARATIONS = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "nms"):
    for _name in ("nms", "qnms"):
        _DECLARATIONS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchdistill.common.main_util import load_ckpt, save_ckpt  # noqa: E402
from torchdistill.common.yaml_util import load_yaml_file  # noqa: E402
from torchdistill.core.distillation import get_distillation_box  # noqa: E402
from torchdistill.losses.mid_level import KDLoss  # noqa: E402
from torchdistill.misc.log import MetricLogger, SmoothedValue  # noqa: E402
from torchvision import transforms  # noqa: E402

# Trying more workers than there are cores is the point of trying.
warnings.filterwarnings("ignore", message="This DataLoader will create")

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """What all sides do alike. The models are copied before they are trained."""

    teacher: nn.Module
    student: nn.Module
    train: Split
    validation: Split
    epochs: int
    batch_size: int
    alpha: float  # of the teacher
    temperature: float
    optimizer: Mapping[str, Any]  # options of SGD
    milestones: tuple[int, ...]  # epochs after which the learning rate falls to a tenth
    augmented: bool  # pad-crop and flip


@dataclass(frozen=True)
class Variant:
    """How the DataLoader is fed. `tuned` is more than the recommended configuration asks for: the fused optimizer,
    workers that live on between epochs and, without augmentation, tensors normalised beforehand instead of images.
    """

    workers: int
    tuned: bool = False


class Images(Dataset):
    """Images of a split as torchvision's CIFAR10 and MNIST hand them out: PIL, then the transform."""

    def __init__(self, split: Split, transform: transforms.Compose):
        pixels = split.pixels[split.rows].permute(0, 2, 3, 1)
        self.data = (pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).contiguous().numpy()
        self.targets = split.targets.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def datasets(task: Task, *, tuned: bool) -> dict[str, Dataset]:
    """Both data sets. Made before the clock starts, as compresskd's are."""
    if tuned and not task.augmented:
        return {"train": _tensors(task.train), "val": _tensors(task.validation)}
    normalize = task.train.normalize
    last = [transforms.ToTensor(), transforms.Normalize(normalize.mean, normalize.std)]
    size = task.train.input_shape[-1]
    first = [transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip(0.5)]
    train = transforms.Compose([*(first if task.augmented else []), *last])
    return {"train": Images(task.train, train), "val": Images(task.validation, transforms.Compose(last))}


def _tensors(split: Split) -> TensorDataset:
    batches = list(split.batches(512))
    return TensorDataset(torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches]))


def torchdistill(
    task: Task, data: dict[str, Dataset], variant: Variant, seed: int, folder: Path
) -> nn.Module:
    """Distil by torchdistill; the student with the weights of its best epoch on validation."""
    torch.manual_seed(seed)
    teacher, student = copy.deepcopy(task.teacher).eval(), copy.deepcopy(task.student)
    config = _config(task, variant)
    box = get_distillation_box(teacher, student, data, config, CPU, None, False, 1)
    checkpoint, best = str(folder / "torchdistill.pt"), -1.0
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        _train_epoch(box, epoch, config["log_freq"])
        accuracy = _top1(student, box.val_data_loader)
        if accuracy > best:
            best = accuracy
            save_ckpt(student, box.optimizer, box.lr_scheduler, best, Namespace(seed=seed), checkpoint)
        box.post_epoch_process()
    box.clean_modules()
    load_ckpt(checkpoint, model=student, strict=True)
    return student


def _config(task: Task, variant: Variant) -> dict[str, Any]:
    config = load_yaml_file(str(Path(__file__).with_name("torchdistill_config.yaml")))["train"]
    config["num_epochs"] = task.epochs
    config["train_data_loader"]["kwargs"]["batch_size"] = task.batch_size
    for loader in ("train_data_loader", "val_data_loader"):
        config[loader]["kwargs"]["num_workers"] = variant.workers
        config[loader]["kwargs"]["persistent_workers"] = variant.tuned and variant.workers > 0
    config["optimizer"]["kwargs"] = {**task.optimizer, **({"fused": True} if variant.tuned else {})}
    config["scheduler"]["kwargs"]["milestones"] = list(task.milestones)
    loss = config["criterion"]["kwargs"]["sub_terms"]["kd"]["criterion"]["kwargs"]
    loss.update(temperature=task.temperature, alpha=1 - task.alpha)
    return config


def _train_epoch(box: Any, epoch: int, log_freq: int) -> None:
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for inputs, targets, extra in logger.log_every(box.train_data_loader, log_freq, f"Epoch: [{epoch}]"):
        start = time.time()
        loss = box.forward_process(inputs, targets, extra)
        box.post_forward_process(loss=loss)
        logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        logger.meters["img/s"].update(len(inputs) / (time.time() - start))
        if not torch.isfinite(loss):
            raise ValueError(f"loss = {loss}")


@torch.inference_mode()
def _top1(model: nn.Module, loader: DataLoader) -> float:
    """Percent of validation; the top-5 accuracy is computed beside it, as the example script does."""
    model.eval()
    logger = MetricLogger(delimiter="  ")
    for inputs, targets in logger.log_every(loader, 1000, "Validation:"):
        guesses = model(inputs).topk(5, dim=1).indices
        hits = guesses == targets[:, None]
        for name, top in (("acc1", 1), ("acc5", 5)):
            logger.meters[name].update(100 * hits[:, :top].sum().item() / len(targets), n=len(targets))
    return logger.meters["acc1"].global_avg


def plain_loop(task: Task, data: dict[str, Dataset], seed: int, folder: Path) -> nn.Module:
    """Distil as a user would write it down: a DataLoader with two workers, the teacher in every step."""
    torch.manual_seed(seed)
    teacher, student = copy.deepcopy(task.teacher).eval(), copy.deepcopy(task.student)
    train = DataLoader(data["train"], task.batch_size, shuffle=True, num_workers=2)
    validation = DataLoader(data["val"], task.batch_size, num_workers=2)
    optimizer = torch.optim.SGD(student.parameters(), **task.optimizer)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(task.milestones), gamma=0.1)
    checkpoint, best = folder / "plain_loop.pt", -1
    for _ in range(task.epochs):
        student.train()
        for inputs, targets in train:
            with torch.no_grad():
                teacher_logits = teacher(inputs)
            loss = _loss(student(inputs), teacher_logits, targets, task)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        student.eval()
        with torch.no_grad():
            correct = sum(int((student(x).argmax(1) == y).sum()) for x, y in validation)
        if correct > best:
            best = correct
            torch.save(student.state_dict(), checkpoint)
    student.load_state_dict(torch.load(checkpoint))
    return student


def _loss(logits: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, task: Task) -> torch.Tensor:
    t = task.temperature
    soft = F.kl_div(F.log_softmax(logits / t, 1), F.softmax(teacher / t, 1), reduction="batchmean")
    return (1 - task.alpha) * F.cross_entropy(logits, targets) + task.alpha * t**2 * soft


def losses(
    task: Task, logits: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor
) -> dict[str, float]:
    """What each peer's loss says of these logits [B, K], to compare with compresskd's."""
    theirs = KDLoss(".", "output", ".", "output", temperature=task.temperature, alpha=1 - task.alpha)
    value = theirs({".": {"output": logits}}, {".": {"output": teacher}}, targets)
    return {"torchdistill": float(value), "plain loop": float(_loss(logits, teacher, targets, task))}

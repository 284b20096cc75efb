"""Faults of the run that trains a teacher, told by the keys of the run that it is for."""

from __future__ import annotations

import dataclasses

from compresskd.config.faults import Fault

_OF_ITS_RECIPE = ("optimizer", "scheduler", "train", "epochs", "seed")


def is_of_training(fault: Fault) -> bool:
    """Whether a fault is the teacher's alone: all others are those of the run itself, which names them."""
    top = fault.key.partition(".")[0]
    return top in ("student", "strategy", *_OF_ITS_RECIPE)


def of_teacher(fault: Fault) -> Fault:
    """The same fault under the key that a user would change: in its own run the teacher is the student."""
    top, dot, rest = fault.key.partition(".")
    key = f"teacher_fit.{fault.key}" if top in _OF_ITS_RECIPE else f"teacher{dot}{rest}"
    if top == "strategy":
        key = "teacher"
    return dataclasses.replace(fault, key=key, text=fault.text.replace("the student", "the teacher"))

"""Data sets: one function per file, each giving a `Data` of tensors."""

from compresskd.data.assemble import Options, Source, assemble
from compresskd.data.base import Augmentation, Data, Split, TensorSplit
from compresskd.data.normalize import Normalize

__all__ = ["Augmentation", "Data", "Normalize", "Options", "Source", "Split", "TensorSplit", "assemble"]

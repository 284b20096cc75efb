"""The architectures of conf/model that can be built by their name, the number of classes and the shape of an input."""

from compresskd.config.shipped import conf_dir

# told by options, or for the vocabulary of texts
OF_OTHERS = ("custom", "huggingface", "timm", "from_teacher", "bert_4l128", "gpt2_4l128")
NAMES = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml") if path.stem not in OF_OTHERS)

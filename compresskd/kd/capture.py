"""Reading the outputs of modules by forward hooks that never outlive their context."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from compresskd.tasks import ModelOutputs, logits_of


class ActivationCapture:
    """Captures the outputs of named modules of one model, as :class:`ModelOutputs` s.

    Of a module that runs several times in one forward pass the last output counts, of a tuple the first
    element. A module whose output is then changed in place shows the changed values.

    Args:
        names: fully qualified names of modules, as ``model.get_submodule`` takes them.
        detach: whether views carry no gradient (a teacher's).
    """

    def __init__(self, names: Sequence[str], *, detach: bool = False) -> None:
        self.names = tuple(names)
        self.detach = detach
        self._captured: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, model: nn.Module | None) -> Iterator["ActivationCapture"]:
        """Hooks on ``model`` while the context lasts, none where nothing is captured.

        Attach before the first call of a model compiled by ``torch.compile``, or its graph will lack them.

        Raises:
            ValueError: if modules are captured and ``model`` is None.
        """
        if self.names and model is None:
            raise ValueError(
                f"expected the model whose modules {', '.join(self.names)} are captured, got None"
            )
        handles = []
        try:
            for name in self.names:
                assert model is not None
                handles.append(model.get_submodule(name).register_forward_hook(self._hook(name)))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._captured = {}

    def view(self, output: Any) -> ModelOutputs:
        """What the model said in its last forward pass, with the features that were captured.

        Args:
            output: its rows, or what it returned where rows are samples: logits ``[B, K]``, or what holds them.

        Raises:
            RuntimeError: if a captured module did not run in that pass.
        """
        said = output if isinstance(output, ModelOutputs) else ModelOutputs(logits_of(output))
        features, self._captured = self._captured, {}
        missing = [name for name in self.names if name not in features]
        if missing:
            raise RuntimeError(
                f"no output of {', '.join(missing)}: expected every captured module to run in forward; a model "
                "compiled before it was attached runs no hooks: compile it within the context"
            )
        if self.detach:
            said = replace(said, logits=said.logits.detach())
            features = {name: x.detach() for name, x in features.items()}
        return replace(said, features=features)

    def partial(self) -> dict[str, Tensor]:
        """Outputs captured so far, in the order in which the modules finished; forgets them."""
        features, self._captured = self._captured, {}
        return features

    def _hook(self, name: str):
        def capture(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, Tensor):
                self._captured[name] = first

        return capture

"""A sweeper of jobs that are composed and checked before Hydra is called, where Hydra looks for plugins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class Planned(Sweeper):
    """Launches `jobs`, the overrides of each, where Hydra's own sweeper would compose all of them once more.

    Args:
        max_batch_size: jobs that are launched at once; None launches all.
        params: of Hydra's own sweeper, which are among the overrides of the jobs.
    """

    jobs: ClassVar[Sequence[Sequence[str]]] = ()

    def __init__(self, max_batch_size: int | None = None, params: Any = None) -> None:
        self._size = max_batch_size
        self._config: DictConfig = OmegaConf.create()
        self._launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        self._config = config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch all jobs; what one of them raised is raised."""
        assert self._launcher is not None
        directory = Path(self._config.hydra.sweep.dir)
        directory.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, directory / "multirun.yaml")
        returns = []
        for start in range(0, len(self.jobs), self._size or len(self.jobs)):
            batch = self.jobs[start : start + (self._size or len(self.jobs))]
            returns.append(self._launcher.launch(batch, initial_job_idx=start))
            for job in returns[-1]:
                _ = job.return_value
        return returns

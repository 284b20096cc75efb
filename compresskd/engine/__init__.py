"""A run: the experiment, its strategy of stages, its teacher, and where it ran."""

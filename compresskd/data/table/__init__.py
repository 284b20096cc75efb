"""Rows of a table: numbers and categories, as one vector of inputs."""

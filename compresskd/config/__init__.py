"""Configuration: composed by Hydra, validated whole, built into an experiment."""

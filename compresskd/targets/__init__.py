"""Dotted paths in configurations and files: what they name, of which kind that may be, and names that stay."""

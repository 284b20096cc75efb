"""Architectures, one a file: ordinary modules with `forward(x) -> logits [B, num_classes]`."""

"""Quantization: grids, packing, quantization-aware training, gauges of tensor trains, entropy coding."""

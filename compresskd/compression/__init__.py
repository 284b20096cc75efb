"""What `compress=` and `quant=` mean: methods, sizes, budgets, plans, and what a calibration tells."""

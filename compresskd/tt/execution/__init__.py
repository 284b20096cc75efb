"""How a factorized layer is run fast: plans, the machine model that ranks them, and what is kept between calls."""

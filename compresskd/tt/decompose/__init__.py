"""From a dense weight to factors: modes, TT-ranks, TT-SVD, and the search over them."""

"""How z is drawn: full, in a low-rank subspace, sparse."""

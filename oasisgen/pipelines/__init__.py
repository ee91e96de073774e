"""One job, one story: train, generate, evaluate."""

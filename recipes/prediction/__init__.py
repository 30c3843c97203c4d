"""Which measured quantity predicts the order in which optimizers end, on small tasks."""

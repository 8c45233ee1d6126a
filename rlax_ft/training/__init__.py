"""The train step, the objectives it minimises, the optimiser, checkpoints and metrics."""

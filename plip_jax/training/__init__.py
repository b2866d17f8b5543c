"""What a training step is made of: losses, optimiser, state, step, checkpoints, metrics."""

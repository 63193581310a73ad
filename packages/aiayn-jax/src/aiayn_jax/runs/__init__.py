"""A training run: settings, loop, checkpoints, and the score at its end."""

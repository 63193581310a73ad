"""What every trainer needs and no framework owns: configuration, loop, checkpoints, metrics, sampling."""

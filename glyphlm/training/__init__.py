"""The training loop and its parts: settings, loss, optimizer, checkpoints, parallelism."""

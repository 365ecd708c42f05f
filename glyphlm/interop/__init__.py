"""Published checkpoints in, other tools' formats out."""

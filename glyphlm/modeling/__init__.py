"""The model. These files travel inside every run folder: they import torch, transformers and each other only."""

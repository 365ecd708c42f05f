"""Shared foundations: errors, atomic files, tensors, progress, the Hub, processes, devices."""

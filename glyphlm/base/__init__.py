"""What every other package stands on: errors, whole files, tensors, progress, the Hub, processes, devices."""

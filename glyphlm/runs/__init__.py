"""A trained run as a Hugging Face folder: saved, loaded, described, and generated from."""

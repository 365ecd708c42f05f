"""Measurements of runs, tokenizers and substrates beside their scores, and plots of them."""

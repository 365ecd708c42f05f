"""Runs, tokenizers and substrates measured and drawn: reports, comparisons, probes."""

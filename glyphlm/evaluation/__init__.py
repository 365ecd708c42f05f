"""Benchmarks: models are evaluated, answers are logged and scored, results are compared with intervals."""

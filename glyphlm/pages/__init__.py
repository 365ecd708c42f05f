"""Finished runs as self-contained HTML pages: the report, and the token-by-token view of a model."""

"""Fonts, glyph pictures, and the code of every token: what input embeddings are made of."""

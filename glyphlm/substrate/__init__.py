"""Fonts, glyph pictures, and the code of every token, from which input embeddings are made."""

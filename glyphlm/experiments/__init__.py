"""Recipes, and the run folders trained from them."""

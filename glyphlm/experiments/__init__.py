"""A recipe, and the run folders it is turned into."""

"""Models made out of models: growth and fusion."""

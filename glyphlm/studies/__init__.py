"""Arms times seeds as a workflow, its tables, and its claims judged."""

"""What a recipe costs before it is run: parameters, memory, operations, time."""

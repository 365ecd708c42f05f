"""Models answer benchmark questions; answers are logged, scored, and compared with intervals."""

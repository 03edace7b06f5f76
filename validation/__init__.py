"""Order and error analysis."""

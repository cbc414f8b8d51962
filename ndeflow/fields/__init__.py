"""Right-hand sides ready to solve."""

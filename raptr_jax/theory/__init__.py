"""What the paper argues with, as runnable numerics."""

"""The paper's theory as runnable numerics."""

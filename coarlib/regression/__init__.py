"""From rows to attributions: moments, solvers, and what they return."""

"""The cases of stochastic differential equations."""

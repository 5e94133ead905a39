"""Numerics of the `simulation` task type: the systems, their steps in JAX, their pictures."""

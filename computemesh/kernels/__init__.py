"""JAX numerics that several task types share. Importing a module here imports JAX: only executors may."""

"""The worker: an agent that holds a Work stream, and one JAX process per device that runs the jobs."""

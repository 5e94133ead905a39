"""Data-parallel training by rounds: models, data, local steps, the outer step, checkpoints."""

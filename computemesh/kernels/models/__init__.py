"""Transformer models in JAX over two arithmetics (docs/decisions/0005): float32, and integers only.

`folder` reads what Hugging Face calls a model folder; `floating` and `integer` are the arithmetics; `decoder`,
`encoder` and `seq2seq` the forward passes written once over either; `generation` samples and judges tokens.
"""

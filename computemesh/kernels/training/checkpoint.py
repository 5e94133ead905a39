"""What a customer gets: a model folder, the loss curve as data and as a picture. No JAX here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from computemesh.kernels.training.architectures import ARCHITECTURES, Model
from computemesh.kernels.training.base import LLAMA_NAMES
from computemesh.kernels.training.data import UNKNOWN


class Point(NamedTuple):
    """The mean loss of one segment: `step` is the last of its local steps, counted over all rounds."""

    round: int
    shard: int
    step: int
    loss: float


def sizes(model: Model) -> dict[str, Any]:
    """What config.json says of a model's sizes."""
    at = model.named
    if not model.reads_text:
        listed = ARCHITECTURES[model.name].listed
        return {"model_type": f"computemesh_{model.name}", **at, **({listed: list(model.listed)} if listed else {})}
    return {"model_type": "llama", **{theirs: at[ours] for ours, theirs in LLAMA_NAMES.items()}}


def document(config: Mapping[str, Any]) -> bytes:
    """A config.json file."""
    return (json.dumps(config, indent=2) + "\n").encode()


def config(model: Model) -> dict[str, Any]:
    """The config.json of a model; a char_transformer's is a Hugging Face Llama's."""
    at = model.named
    if not model.reads_text:
        return sizes(model)
    return {
        "architectures": ["LlamaForCausalLM"],
        **sizes(model),
        "head_dim": at["hidden"] // at["heads"],
        "max_position_embeddings": at["context"],
        "tie_word_embeddings": bool(at["tied"]),
        "rms_norm_eps": model.epsilon,
        "rope_theta": model.theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": None,
    }


def weights(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file of float32 tensors."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    return bytes(save(arrays, metadata={"format": "pt"}))


def tokenizer(alphabet: np.ndarray) -> bytes:
    """A tokenizer.json that takes text apart into characters; `alphabet` are their code points (V,) uint32 by
    token, token 0 stands for all others, zeros at the end for none.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    used = [point for i, point in enumerate(alphabet.tolist()) if point or i == 1]
    vocabulary = {chr(point): token for token, point in enumerate(used)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    made.decoder = decoders.Fuse()
    return str(made.to_str()).encode()


def curve_csv(points: Sequence[Point]) -> bytes:
    """The loss curve: round, shard, step, loss per line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Point._fields)
    writer.writerows([(p.round, p.shard, p.step, f"{p.loss:.9g}") for p in points])
    return text.getvalue().encode()


def curve_json(points: Sequence[Point], about: Mapping[str, Any]) -> bytes:
    """The loss curve as columns, after what it is the curve of. A loss that is not finite is null: JSON has none."""
    columns: dict[str, list[Any]] = {name: [getattr(p, name) for p in points] for name in Point._fields}
    columns["loss"] = [loss if np.isfinite(loss) else None for loss in columns["loss"]]
    return json.dumps({**about, "curve": columns}, separators=(",", ":")).encode()


def curve_png(points: Sequence[Point], title: str, unit: str) -> bytes:
    """A picture of the loss curve, 1,200 x 750: one line per shard, their mean in front, rounds marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shards = sorted({p.shard for p in points})
    lines = {shard: [p for p in points if p.shard == shard] for shard in shards}
    single = len(shards) == 1
    for shard, line in lines.items():
        look: dict[str, Any] = {"color": "C0", "label": "loss"} if single else {"color": "0.72", "lw": 0.8}
        if not single and shard == shards[0]:
            look["label"] = f"each of {len(shards)} shards"
        axes.plot([p.step for p in line], [p.loss for p in line], **look)
    if not single:
        steps = sorted(set.intersection(*({p.step for p in line} for line in lines.values())))
        at = {(p.shard, p.step): p.loss for p in points}
        axes.plot(steps, [np.mean([at[shard, step] for shard in shards]) for step in steps], color="C0", label="mean")
    for number in sorted({p.round for p in points})[1:]:
        first = min(p.step for p in points if p.round == number)
        axes.axvline(first, color="C1", lw=0.8, alpha=0.7, label="outer step" if number == 1 else None)
    finite = [p.loss for p in points if np.isfinite(p.loss) and p.loss > 0]
    if finite and max(finite) > 10 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlabel="local steps", ylabel=unit, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()

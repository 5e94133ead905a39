"""Checkpoints of the `training` type: what others read in them, and training on from one."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from computemesh.kernels.training import architectures, checkpoint, networks
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads import Context, JobResult, get
from computemesh.workloads import training_job as tj
from tests.workloads.training_tasks import (
    DIGITS,
    TASK,
    TASK_ID,
    TaskFiles,
    accuracy,
    artifacts,
    digits_npz,
    jobs,
    judge,
    run_task,
    text,
)

LLAMA = {"name": "char_transformer", "hidden": 24, "layers": 2, "heads": 4, "key_value_heads": 2, "context": 32}
LANGUAGE = {
    "model_architecture": LLAMA, "batch_size": 8, "examples": 480, "learning_rate": 1e-2, "seed": "text",
}  # fmt: skip


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """(files, payload, the model folder's files) of a small trained language model."""
    files = TaskFiles(tmp_path_factory.mktemp("language"))
    payload = {**LANGUAGE, "dataset": files.put(text())}
    return files, payload, folder(*run_task(payload, files))


def folder(params, outcomes):
    found = artifacts(params, outcomes)
    return {name.removeprefix("model/"): data for name, data in found.items() if name.startswith("model/")}


def test_the_checkpoint_is_a_llama_to_transformers(language, tmp_path):
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    _, payload, files = language
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    model = tj.whole(TASK.parse(payload)).model
    sentence = "The worker opens them in one round trip."
    ids = np.array([Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(sentence).ids[:32]], np.int32)
    assert ids.shape == (1, 32)
    mine = np.asarray(networks.forward(model, load(files["model.safetensors"]), ids))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).logits.numpy()
    np.testing.assert_allclose(mine, expected, atol=2e-4)


def test_the_tokenizer_takes_characters_apart_and_joins_them(language):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(language[2]["tokenizer.json"].decode())
    sentence = "A job's  result:\n\tn units.\r\n"
    ids = tokenizer.encode(sentence).ids
    assert len(ids) == len(sentence)
    known = text().decode()
    assert tokenizer.decode(ids) == "".join(c if c in known else "�" for c in sentence)
    assert tokenizer.encode("\U0001f600").ids == [0]
    alphabet = np.array([0xFFFD, 0, ord("a"), ord("b"), 0, 0], np.uint32)
    small = Tokenizer.from_str(checkpoint.tokenizer(alphabet).decode())
    assert small.encode("a\0bc").ids == [2, 1, 3, 0]


def test_a_following_inference_task_reads_the_checkpoint(language):
    files, _, made = language
    inference = get("inference")
    digest = files.put_folder(made)
    asked = {"model_id": digest, "prompt": "The wor", "max_tokens": 16, "temperature": 0}
    params = inference.parse({**asked, "model_parameters": 50_000})
    spec = replace(inference.split(params, TASK_ID)[0], files=files)
    outcome = inference.execute(spec, Context())
    found = inference.assemble(params, [JobResult(bytes(32), outcome.output)])
    assert any(b"text" in artifact.data for artifact in found)


def test_frozen_layers_stay_and_the_rest_learns_on(language):
    files, payload, made = language
    asked = {
        **payload, "model_id": files.put_folder(made), "frozen": ["model.layers.0.*", "model.embed_tokens.*"],
        "rounds": 2, "workers": 2, "examples": 240, "learning_rate": 3e-3,
    }  # fmt: skip
    params, outcomes = run_task(asked, files, audit=True)
    tuned = folder(params, outcomes)
    before, after = load(made["model.safetensors"]), load(tuned["model.safetensors"])
    assert before.keys() == after.keys()
    moved = {name for name in after if (before[name] != after[name]).any()}
    assert moved == {name for name in after if name.startswith("model.layers.1.") or name == "model.norm.weight"}
    assert tuned["tokenizer.json"] == made["tokenizer.json"]
    assert json.loads(tuned["config.json"]) == json.loads(made["config.json"])
    losses = json.loads(artifacts(params, outcomes)["loss.json"])["curve"]["loss"]
    first = json.loads(artifacts(*run_task({**payload, "examples": 240}, files))["loss.json"])["curve"]["loss"]
    assert np.mean(losses[:5]) < np.mean(first[:5]) - 0.5


def test_a_new_head_on_old_layers_learns_another_task(tmp_path):
    files = TaskFiles(tmp_path)
    payload = {**DIGITS, "dataset": files.put(digits_npz()), "optimizer": "adam"}
    base = folder(*run_task({**payload, "epochs": 6}, files))
    asked = {**payload, "model_id": files.put_folder(base), "frozen": ["layers.0.*"], "fresh": ["layers.1.*"]}
    params, outcomes = run_task({**asked, "learning_rate": 0.02, "epochs": 6}, files, audit=True)
    found = artifacts(params, outcomes)
    assert accuracy(found, tj.whole(params).model) > 0.9
    tuned = load(found["model/model.safetensors"])
    assert (tuned["layers.0.weight"] == load(base["model.safetensors"])["layers.0.weight"]).all()
    job = tj.whole(params)
    assert job.weights == 32 * 10 + 10
    spec = jobs({**asked, "learning_rate": 0.02, "epochs": 6}, files)[1][0]
    assert judge(spec, outcomes[0])
    assert not job._replace(rounds=2).carries_base


def hostile(made, **changes):
    config = json.loads(made["config.json"])
    return {**made, "config.json": json.dumps({**config, **changes}).encode()}


def test_a_model_folder_that_does_not_fit_is_refused(language):
    files, payload, made = language
    tensors = load(made["model.safetensors"])
    missing = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    wrong = {**tensors, "model.norm.weight": np.ones(31, np.float32)}
    nan = {**tensors, "model.norm.weight": np.full(24, np.nan, np.float32)}
    cases = {
        "hidden_size is 48, model_architecture says hidden 24": hostile(made, hidden_size=48),
        "model_type must be llama": hostile(made, model_type="gpt2"),
        "attention_bias false": hostile(made, attention_bias=True),
        "only the default rotary embedding": hostile(made, rope_scaling={"rope_type": "llama3"}),
        "has no tokenizer.json": {name: data for name, data in made.items() if name != "tokenizer.json"},
        "'model.norm.weight' is missing": {**made, "model.safetensors": save(missing)},
        r"has shape \[31\]": {**made, "model.safetensors": save(wrong)},
        "holds NaN": {**made, "model.safetensors": save(nan)},
        "is a pickle": {**made, "weights.bin": b"\x80\x04"},
        "declares a header of": {**made, "model.safetensors": b"\xff" * 64},
    }
    for message, content in cases.items():
        asked = {**payload, "model_id": files.put_folder(content)}
        with pytest.raises(InvalidArgument, match=message):
            TASK.execute(jobs(asked, files)[1][0], Context())


def test_starting_weights_are_the_same_bits_everywhere():
    from blake3 import blake3

    model, _ = architectures.read_model({"name": "mlp", "inputs": 3, "hidden": [4], "outputs": 2})
    found = architectures.initial(model, bytes(32), "layers.0.weight", (4, 3))
    assert blake3(found.tobytes()).hexdigest().startswith("c87748724c641cd58a2de787")
    assert np.abs(found).max() <= 2**0.5
    many = architectures.initial(model, bytes(32), "layers.0.weight", (400, 300))
    assert abs(many.std() / (2 / 300) ** 0.5 - 1) < 0.01
    assert abs(many.mean()) < 1e-3

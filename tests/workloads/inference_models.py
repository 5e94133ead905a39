"""Small random models made on the spot: config, weights by transformers, a tokenizer trained on this repository."""

import atexit
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = [line for page in sorted((ROOT / "docs").glob("*.md")) for line in page.read_text("utf-8").splitlines()]
VOCABULARY = 600
PROMPTS = ["The market holds the money.", "A worker", "Every result is checked: commit, challenge, open, and then"]


class FolderFiles:
    """`Files` of a test: folders and files under made-up digests."""

    def __init__(self):
        self.paths = {}

    def add(self, path):
        digest = sha256(str(path).encode()).digest()
        self.paths[digest] = Path(path)
        return digest.hex()

    def artifact(self, digest):
        return self.paths[digest]

    folder = artifact


class SmallFiles(FolderFiles):
    """A small GPT-2 under one digest, made when first asked for."""

    def folder(self, digest):
        if digest not in self.paths:
            self.paths[digest] = Path(tempfile.mkdtemp(prefix="computemesh-model-"))
            atexit.register(shutil.rmtree, self.paths[digest], ignore_errors=True)
            gpt2(self.paths[digest], n_layer=1)
        return self.paths[digest]


SMALL = {"model_id": "5a" * 32, "prompts": PROMPTS[:2], "max_tokens": 20, "temperature": 1.0, "seed": "law"}


def save_tokenizer(path, end=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))


def _save(model, path, end=False):
    path.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(path)
    save_tokenizer(path, end)
    return model


ENDS = {"bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3, "vocab_size": VOCABULARY}


def llama(path, **changes):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
    return _save(LlamaForCausalLM(LlamaConfig(**{**ENDS, **sizes, **changes})), path)


def gpt2(path, **changes):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
    return _save(GPT2LMHeadModel(GPT2Config(**{**ENDS, **sizes, **changes})), path)


def t5(path, **changes):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "initializer_factor": 3.0,
             "decoder_start_token_id": 0, "vocab_size": VOCABULARY, "eos_token_id": 1}  # fmt: skip
    return _save(T5ForConditionalGeneration(T5Config(**{**sizes, **changes})), path, end=True)


def vit(path, **changes):
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "image_size": 64, "patch_size": 16, "initializer_range": 0.2,
             "id2label": {i: f"class {i}" for i in range(7)}}  # fmt: skip
    model = ViTForImageClassification(ViTConfig(**{**sizes, **changes})).eval()
    model.save_pretrained(path)
    return model

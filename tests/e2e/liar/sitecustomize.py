"""Makes every executor started with this folder on its path a liar: one bit wrong in a tenth of a job's tiles.

Python imports `sitecustomize` at start-up, so the worker itself is the released code, only its arithmetic lies.
"""

import random

from blake3 import blake3

from computemesh.workloads import synthetic
from computemesh.workloads.contract import Outcome

SHARE = 0.1
honest = synthetic.TASK.execute


def lie(spec, context):
    """The honest outcome with one bit flipped in a tenth of the tiles of a job of one iteration."""
    outcome = honest(spec, context)
    job = synthetic.read_job(spec)
    across = job.size // synthetic.TILE
    digests = bytearray(outcome.digests)
    count = len(digests) // 32
    for index in random.sample(range(count), max(1, round(SHARE * count))):
        rows = synthetic.generate_band(job.key, synthetic.LEFT, index // across, job.size).astype("f4")
        columns = synthetic.generate_band(job.key, synthetic.RIGHT, index % across, job.size).astype("f4")
        tile = bytearray(synthetic.multiply_tile(rows, columns).astype("<i4").tobytes())
        assert blake3(tile).digest() == digests[32 * index : 32 * index + 32], "the lie must start from the truth"
        tile[random.randrange(len(tile))] ^= 1 << random.randrange(8)
        digests[32 * index : 32 * index + 32] = blake3(tile).digest()
    return Outcome(bytes(digests))


object.__setattr__(synthetic.TASK, "execute", lie)

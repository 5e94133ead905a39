"""Makes every executor started with this folder on its path upload what it did not compute: FAKER says which way.

`flip`: one bit of the output is another; `long`: the output has a byte too many. The commitment is honest.
"""

import os
from dataclasses import replace

from computemesh.workloads import simulation

honest = simulation.TASK.execute


def fake(spec, context):
    """The honest outcome with another output."""
    outcome = honest(spec, context)
    output = outcome.output
    if os.environ["FAKER"] == "long":
        return replace(outcome, output=output + bytes(1))
    return replace(outcome, output=bytes([output[0] ^ 1]) + output[1:])


object.__setattr__(simulation.TASK, "execute", fake)

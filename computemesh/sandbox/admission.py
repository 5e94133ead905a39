"""What an exported program may contain. Runs in the child: parsing foreign bytes is itself dangerous.

An allow-list, by the names of StableHLO's specification: what is not named here is refused, so an operation that a
later release invents is refused too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from computemesh.sandbox.child import Refused

_ELEMENTWISE = """abs add and atan2 bitcast_convert cbrt ceil clamp compare complex convert cosine count_leading_zeros
divide exponential exponential_minus_one floor imag is_finite log log_plus_one logistic maximum minimum multiply negate
not or popcnt power real reduce_precision remainder round_nearest_afz round_nearest_even rsqrt select shift_left
shift_right_arithmetic shift_right_logical sign sine sqrt subtract tan tanh xor"""
_STRUCTURE = """broadcast broadcast_in_dim concatenate constant dynamic_slice dynamic_update_slice gather
get_tuple_element iota optimization_barrier pad reshape return reverse slice transpose tuple"""
_ALGORITHMS = """batch_norm_grad batch_norm_inference batch_norm_training case cholesky convolution dot dot_general fft
if map reduce reduce_window rng_bit_generator scatter select_and_scatter sort triangular_solve while"""
_CHLO = """acos acosh asin asinh atan atanh bessel_i1e conj constant cosh digamma erf erf_inv erfc is_inf is_neg_inf
is_pos_inf lgamma mulhi next_after polygamma sinh square tan top_k zeta"""
OPERATIONS = frozenset(
    ["builtin.module", "func.call", "func.func", "func.return"]
    + [f"stablehlo.{name}" for name in (_ELEMENTWISE + " " + _STRUCTURE + " " + _ALGORITHMS).split()]
    + [f"chlo.{name}" for name in _CHLO.split()]
)
CUSTOM_CALLS = frozenset({"Sharding", "shape_assertion"})
# Attributes with a dialect's prefix can steer the compiler (placement, other backends); these cannot.
ATTRIBUTES = frozenset({
    "jax.uses_shape_polymorphism", "jax.global_constant", "jax.result_info", "jax.arg_info", "mhlo.num_partitions",
    "mhlo.num_replicas", "mhlo.layout_mode",
})  # fmt: skip
# Reductions in whatever order give the same integer.
COMMUTATIVE = frozenset(f"stablehlo.{name}" for name in ("add", "and", "maximum", "minimum", "multiply", "or", "xor"))
MAX_OPERATIONS = 200_000
MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Contents:
    """`operations`: the names there are, sorted. `integer`: no value of the program is a float or complex number.
    `order`: integer operations whose result depends on an order the specification leaves open."""

    operations: tuple[str, ...]
    integer: bool
    order: tuple[str, ...]


def examine(module: Any) -> Contents:
    """Walk an MLIR module. Raises Refused naming what is not allowed."""
    from jax.extend.mlir import ir

    bad: dict[str, None] = {}
    order: dict[str, None] = {}
    names: set[str] = set()
    integer = True
    for count, op in enumerate(_walk(module.operation)):
        if count >= MAX_OPERATIONS:
            raise Refused("REFUSED", f"the program has more than {MAX_OPERATIONS:,} operations")
        names.add(op.name)
        for problem in _problems(op):
            bad[problem] = None
        for kind in _types(op, ir):
            element = _element(kind, ir)
            if element is None:
                bad[f"{op.name} on values of type {str(kind)[:60]}"] = None
            elif not isinstance(element, ir.IntegerType):
                integer = False
        if _order_left_open(op):
            order[op.name] = None
    if bad:
        more = f"; and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        named = "; ".join(list(bad)[:MAX_NAMED]) + more
        raise Refused("REFUSED", f"the program may not contain: {named}")
    return Contents(tuple(sorted(names)), integer, tuple(order))


def _walk(operation: Any) -> Iterator[Any]:
    """The operation and all inside it, without recursion: nesting is the sender's choice."""
    stack = [operation]
    while stack:
        op = stack.pop()
        yield op
        for region in op.regions:
            for block in region:
                stack += [inner.operation for inner in block]


def _problems(op: Any) -> Iterator[str]:
    if op.name == "stablehlo.custom_call":
        target = _text(op.attributes["call_target_name"])
        if target not in CUSTOM_CALLS:
            yield f"custom call {target[:60]!r}"
    elif op.name == "stablehlo.composite":
        # A named group of operations; its body is a function of the module, and examined like the others.
        if (name := _text(op.attributes["name"])) not in OPERATIONS:
            yield f"composite {name[:60]!r}"
    elif op.name not in OPERATIONS:
        yield op.name[:60]
    elif op.name == "stablehlo.rng_bit_generator" and "DEFAULT" in str(op.attributes["rng_algorithm"]):
        yield "stablehlo.rng_bit_generator of algorithm DEFAULT, which differs between devices"
    for attribute, value in _attributes(op):
        if attribute in ("mhlo.num_partitions", "mhlo.num_replicas") and not str(value).startswith("1 "):
            yield f"{attribute} = {str(value)[:20]}: one device only"
        elif "." in attribute and attribute not in ATTRIBUTES and not _is_sharding(op, attribute):
            yield f"attribute {attribute[:60]}"


def _is_sharding(op: Any, attribute: str) -> bool:
    return op.name == "stablehlo.custom_call" and attribute == "mhlo.sharding"


def _attributes(op: Any) -> Iterator[tuple[str, Any]]:
    for name in op.attributes:
        key = name if isinstance(name, str) else name.name
        value = op.attributes[key]
        yield key, value
        if key in ("arg_attrs", "res_attrs"):
            for entry in value:
                for inner in entry:
                    yield (inner.name, inner.attr) if hasattr(inner, "attr") else (inner, entry[inner])


def _text(attribute: Any) -> str:
    return str(getattr(attribute, "value", attribute))


def _types(op: Any, ir: Any) -> Iterator[Any]:
    for result in op.results:
        yield result.type
    for operand in op.operands:
        yield operand.type
    for region in op.regions:
        for block in region:
            for argument in block.arguments:
                yield argument.type


def _element(kind: Any, ir: Any) -> Any:
    """The element type of a tensor of static shape, numbers only; None for everything else."""
    if not isinstance(kind, ir.RankedTensorType) or not kind.has_static_shape or kind.encoding is not None:
        return None
    element = kind.element_type
    return element if isinstance(element, ir.IntegerType | ir.FloatType | ir.ComplexType) else None


def _order_left_open(op: Any) -> bool:
    """Whether an integer result may depend on the order in which a device combines or places values."""
    if op.name in ("stablehlo.select_and_scatter", "stablehlo.composite"):
        return True
    if op.name == "stablehlo.sort":
        stable = "is_stable" in op.attributes and "true" in str(op.attributes["is_stable"])
        return not _is_total(op) or (len(op.operands) > 1 and not stable)
    if op.name == "stablehlo.scatter":
        return not (_is_commutative(op) or _places_once(op))
    if op.name in ("stablehlo.reduce", "stablehlo.reduce_window"):
        return not (_is_commutative(op) or _body(op) in EXTREMA)
    return False


Step = tuple[str, str, tuple[int, ...]]


def _body(op: Any) -> tuple[Step, ...]:
    """A region as data: (operation, comparison, operands), values numbered from the block's arguments on.

    Operands from outside of the region are -1.
    """
    block = op.regions[0].blocks[0]
    numbers = {value: number for number, value in enumerate(block.arguments)}
    steps: list[Step] = []
    for inner in (view.operation for view in block):
        direction = str(inner.attributes["comparison_direction"]) if inner.name == "stablehlo.compare" else ""
        name = inner.name.removeprefix("stablehlo.")
        found = re.search(r"\b(EQ|NE|GE|GT|LE|LT)\b", direction)
        steps.append((name, found[1] if found else "", tuple(numbers.get(value, -1) for value in inner.operands)))
        for result in inner.results:
            numbers[result] = len(numbers)
    return tuple(steps)


def _extremum(better: str) -> tuple[Step, ...]:
    """The body of argmax (GT) and argmin (LT) as JAX lowers them: the better value, of equals the lower index."""
    return (
        ("compare", better, (0, 2)), ("compare", "NE", (0, 0)), ("or", "", (4, 5)), ("compare", "EQ", (0, 2)),
        ("compare", "LT", (1, 3)), ("and", "", (7, 8)), ("or", "", (6, 9)), ("select", "", (6, 0, 2)),
        ("select", "", (10, 1, 3)), ("return", "", (11, 12)),
    )  # fmt: skip


EXTREMA = (_extremum("GT"), _extremum("LT"))


def _is_commutative(op: Any) -> bool:
    body = _body(op)
    return len(body) == 2 and f"stablehlo.{body[0][0]}" in COMMUTATIVE and sorted(body[0][2]) == [0, 1]


def _is_total(op: Any) -> bool:
    body = _body(op)
    return len(body) == 2 and body[0] in (("compare", "LT", (0, 1)), ("compare", "GT", (0, 1)))


def _places_once(op: Any) -> bool:
    """Whether a scatter has one window only. `unique_indices` is the sender's word, so it counts for nothing."""
    from jax.extend.mlir.dialects import stablehlo

    numbers = stablehlo.ScatterDimensionNumbers(op.attributes["scatter_dimension_numbers"])
    count = len(numbers.scattered_dims_to_operand_dims)
    operands = len(op.results)
    return int(np.prod(op.operands[operands].type.shape, dtype=np.int64)) == count

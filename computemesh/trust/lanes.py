"""SHA-256 (FIPS 180-4) of many messages of one length at once, sixteen side by side in vector registers.

A call of hashlib costs more than the two blocks of a Merkle node, and a tree has thousands of nodes. LLVM makes the
machine code below for whatever processor this is, in 0.2 s at the first use. The code is checked against hashlib before
it is used; where it cannot be made, hashlib does the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from hashlib import sha256
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16
_BLOCK = 64

Kernel = Callable[[int, int, int, int], None]
"""(address of padded messages, address of digest words by lane, groups of 16 messages, blocks of a message)"""


def digests(data: bytes, size: int, prefix: bytes = b"") -> bytes:
    """SHA-256 of `prefix` before each `size` bytes of `data`, 32 bytes each, joined. `len(data)` is a multiple."""
    kernel, count = _kernel(), len(data) // size
    if kernel is None:
        return b"".join([sha256(prefix + data[at : at + size]).digest() for at in range(0, len(data), size)])
    groups, empty = -(-count // LANES), _padded(size, prefix)
    messages = np.empty((groups * LANES, len(empty)), np.uint8)
    messages[:] = empty
    messages[:count, len(prefix) : len(prefix) + size] = np.frombuffer(data, np.uint8).reshape(count, size)
    words = np.empty((groups, 8, LANES), np.uint32)
    kernel(messages.ctypes.data, words.ctypes.data, groups, len(empty) // _BLOCK)
    return words.transpose(0, 2, 1).tobytes()[: 32 * count]


@lru_cache(maxsize=64)
def _padded(size: int, prefix: bytes) -> NDArray[np.uint8]:
    """A message of whole blocks (section 5.1.1) with `size` zeros after `prefix`."""
    length = len(prefix) + size
    whole = prefix + bytes(size) + b"\x80" + bytes(-(length + 9) % _BLOCK) + (8 * length).to_bytes(8, "big")
    return np.frombuffer(whole, np.uint8)


@cache
def _kernel() -> Kernel | None:
    try:
        kernel = _compiled()
    except (ImportError, RuntimeError, OSError):  # no wheel for this platform, or no executable memory to be had
        return None
    messages = np.random.default_rng(1).integers(0, 256, (2 * LANES, 119), np.uint8)
    padded, words = np.tile(_padded(119, b""), (2 * LANES, 1)), np.empty((2, 8, LANES), np.uint32)
    padded[:, :119] = messages
    kernel(padded.ctypes.data, words.ctypes.data, 2, 2)
    expected = b"".join(sha256(message.tobytes()).digest() for message in messages)
    return kernel if words.transpose(0, 2, 1).tobytes() == expected else None


def _compiled() -> Kernel:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(str(_Code().module))
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    # PYFUNCTYPE: a call takes microseconds, less than to let go of the interpreter and wait for it again.
    call = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    kernel: Any = call(engine.get_function_address("digests"))
    kernel.engine = engine  # which owns the code
    return kernel  # type: ignore[no-any-return]


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root(number: int) -> int:
    guess = 1 << -(-number.bit_length() // 3)
    while guess**3 > number:
        guess = (2 * guess + number // guess**2) // 3
    return guess


INITIAL = [isqrt(prime << 64) & 0xFFFFFFFF for prime in _primes(8)]
"""Section 5.3.3: the first 32 bits of the fractions of the square roots of the first 8 primes."""

CONSTANTS = [_cube_root(prime << 96) & 0xFFFFFFFF for prime in _primes(64)]
"""Section 4.2.2: those of the cube roots of the first 64 primes."""


class _Code:
    """The kernel in LLVM's intermediate form: one vector holds a word of sixteen messages."""

    def __init__(self) -> None:
        from llvmlite import ir

        self.ir, self.module = ir, ir.Module("sha256")
        self.word, self.size = ir.IntType(32), ir.IntType(64)
        self.vector = ir.VectorType(self.word, LANES)
        self.funnel = ir.Function(
            self.module, ir.FunctionType(self.vector, [self.vector] * 3), f"llvm.fshr.v{LANES}i32")
        self.swap = ir.Function(self.module, ir.FunctionType(self.vector, [self.vector]), f"llvm.bswap.v{LANES}i32")
        table = ir.ArrayType(self.vector, 64)
        self.constants = ir.GlobalVariable(self.module, table, "constants")
        self.constants.global_constant, self.constants.linkage = True, "internal"
        self.constants.initializer = ir.Constant(table, [self.splat(value) for value in CONSTANTS])
        pointer = self.vector.as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [self.word.as_pointer(), pointer, self.size, self.size])
        self.function = ir.Function(self.module, signature, "digests")
        self.messages, self.digests, groups, self.blocks = self.function.args
        self.build = ir.IRBuilder(self.function.append_basic_block())
        self.loop(groups, [], self.group)
        self.build.ret_void()

    def splat(self, value: int) -> Any:
        return self.ir.Constant(self.vector, [value] * LANES)

    def at(self, number: int) -> Any:
        return self.ir.Constant(self.size, number)

    def loop(self, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """`carried = body(i, carried)` for i in range(count), at least once."""
        build, before = self.build, self.build.block
        head = self.function.append_basic_block()
        build.branch(head)
        build.position_at_end(head)
        index, inside = build.phi(self.size), [build.phi(one.type) for one in carried]
        following = body(index, inside)
        after = build.add(index, self.at(1))
        for phi, first, later in zip([index, *inside], [self.at(0), *carried], [after, *following], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, build.block)
        done = self.function.append_basic_block()
        build.cbranch(build.icmp_unsigned("<", after, count), head, done)
        build.position_at_end(done)
        return following

    def group(self, index: Any, _: list[Any]) -> list[Any]:
        """Sixteen messages from their first block to their digests."""
        build, stride = self.build, self.build.mul(self.blocks, self.at(16))
        first = build.mul(build.mul(index, self.at(LANES)), stride)

        def block(number: Any, state: list[Any]) -> list[Any]:
            start = build.add(first, build.mul(number, self.at(16)))
            rows = [build.add(start, build.mul(self.at(lane), stride)) for lane in range(LANES)]
            words = self.transposed([self.load(self.messages, row) for row in rows])
            words = [build.call(self.swap, [word]) for word in words]
            mixed = self.rounds(state, words, self.at(0))
            mixed = self.loop(self.at(3), [*mixed, *words], self.sixteen_more)
            return [build.add(old, new) for old, new in zip(state, mixed[:8], strict=True)]

        state = self.loop(self.blocks, [self.splat(value) for value in INITIAL], block)
        for at, word in enumerate(state):
            place = build.gep(self.digests, [build.add(build.mul(index, self.at(8)), self.at(at))], inbounds=True)
            build.store(build.call(self.swap, [word]), place, align=4)
        return []

    def load(self, base: Any, offset: Any) -> Any:
        place = self.build.gep(base, [offset], inbounds=True)
        return self.build.load(self.build.bitcast(place, self.vector.as_pointer()), align=4)

    def transposed(self, rows: list[Any]) -> list[Any]:
        """Vectors of one message's words become vectors of one word's messages."""
        for step in (8, 4, 2, 1):
            low = [at if not at & step else at - step + LANES for at in range(LANES)]
            high = [at + step if not at & step else at + LANES for at in range(LANES)]
            made = list(rows)
            for at in (at for at in range(LANES) if not at & step):
                for place, mask in ((at, low), (at + step, high)):
                    shuffle = self.ir.Constant(self.vector, mask)
                    made[place] = self.build.shuffle_vector(rows[at], rows[at + step], shuffle)
            rows = made
        return rows

    def sixteen_more(self, index: Any, carried: list[Any]) -> list[Any]:
        """Section 6.2.2, steps 1 and 3: the next sixteen words of the schedule, and their rounds."""
        words = carried[8:]
        for at in range(16):
            early, late = words[(at + 1) % 16], words[(at + 14) % 16]
            words[at] = self.sum(
                words[at], self.mix(early, (7, 18), 3), words[(at + 9) % 16], self.mix(late, (17, 19), 10))
        offset = self.build.mul(self.build.add(index, self.at(1)), self.at(16))
        return [*self.rounds(carried[:8], words, offset), *words]

    def rounds(self, state: Sequence[Any], words: list[Any], offset: Any) -> list[Any]:
        """Section 6.2.2, step 3: sixteen rounds."""
        build = self.build
        a, b, c, d, e, f, g, h = state
        for at, word in enumerate(words):
            index = [self.at(0), build.add(offset, self.at(at))]
            constant = build.load(build.gep(self.constants, index, inbounds=True))
            choice = build.xor(g, build.and_(e, build.xor(f, g)))
            majority = build.or_(build.and_(a, b), build.and_(c, build.or_(a, b)))
            first = self.sum(h, self.mix(e, (6, 11, 25)), choice, constant, word)
            second = build.add(self.mix(a, (2, 13, 22)), majority)
            a, b, c, d, e, f, g, h = build.add(first, second), a, b, c, build.add(d, first), e, f, g
        return [a, b, c, d, e, f, g, h]

    def sum(self, first: Any, *others: Any) -> Any:
        for other in others:
            first = self.build.add(first, other)
        return first

    def mix(self, word: Any, turns: Sequence[int], shift: int = 0) -> Any:
        """Its rotations to the right, and with `shift` it shifted, put together by exclusive or."""
        parts = [self.build.call(self.funnel, [word, word, self.splat(turn)]) for turn in turns]
        if shift:
            parts.append(self.build.lshr(word, self.splat(shift)))
        mixed = parts[0]
        for part in parts[1:]:
            mixed = self.build.xor(mixed, part)
        return mixed

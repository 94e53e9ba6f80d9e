"""The formats of the XLA compiler's text: optimised programs, their collectives, cycle estimates and memory errors.

Written against jax 0.10.2 and libtpu 0.0.52. The compiler promises none of these formats: each pattern here is checked
in `tests/compat/test_hlo_text.py` on a program that the installed compiler writes. `planning/` knows what the matches
mean; only this module knows what they look like.
"""

from __future__ import annotations

import re

VERSION = "0.0.52"
"""The version of libtpu that this module was written against."""

DUMPED = "*after_optimizations.txt"
"""Files that the compiler writes into `xla_dump_to`; of those, `BUFFERS` in the name marks the buffer assignments."""
BUFFERS = "buffer"

# Computations and calls.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+)[ (].*\{\s*$")
"""The first line of a computation: ('ENTRY ' or None, name)."""
# Not every line that begins with a brace: an instruction with a kernel's attributes spans several lines, and one of
# them begins with "}}, ".
COMPUTATION_END = re.compile(r"^\}(, execution_thread=.*)?$")
CALLS = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
"""Names of the computations that an instruction calls."""
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
WHILE = re.compile(r"\bcondition=%?([\w.\-]+), body=%?([\w.\-]+)")
TRIP_COUNT = re.compile(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)')
CONSTANT = re.compile(r"= s(?:32|64)\[\][^ ]* constant\((\d+)\)")
"""An integer constant; the TPU compiler notes no trip count, so that of a loop is what its condition compares with."""
ASYNC_END = re.compile(r" async-(update|done)\(")
"""The end of an asynchronous call names the same computation as its beginning."""

# Collectives.
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(
    rf"^%?([\w.\-]+) = (\(?.*?\)?) ({'|'.join(COLLECTIVES)}|ragged-all-to-all)(-start)?\("
)
"""(name, result, kind, '-start' or None) of a collective."""
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
"""The number of a collective: all of its appearances in a program have the same."""
SCATTERING_FUSION = "all-reduce-scatter"
"""The TPU compiler writes a reduce-scatter as a fusion of this name around an all-reduce."""
TRANSFER = re.compile(r"^%?[\w.\-]+ = (\(.*?\)) send\(.*_xla_megascale_transfer_type=\"(\w+)\"")
"""(result, kind) of a collective between slices: a `send` to the host's runtime."""
ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+\w*)\[([\d,]*)\]")
"""(dtype, extents) of an array."""
EXPLICIT_GROUPS = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")

# Estimates and names.
CYCLES = re.compile(r'estimated_cycles\\?":\\?"(\d+)')
OPERATION = re.compile(r'op_name="([^"]*)"')
"""JAX's path to the operation that an instruction was made of."""
FIRST_RESULT = re.compile(r"= \(?([\w]+\[[\d,]*\])")
RECOMPUTED, BACKWARD = "rematted_computation", "transpose("
"""In JAX's path: a part that the backward pass recomputes, and the beginning of a part that belongs to it."""
# Parts of JAX's path that say nothing of what the operation does.
WRAPPER = re.compile(
    r"(jit|jvp|transpose|vmap|pjit)\(.*\)|while|body|cond|closed_call|checkpoint|rematted_computation|shard_map|\?"
)

# Errors.
_AMOUNT = r"([\d.]+)\s*([KMGT]?)(?:i?B)?"
_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
_OUT_OF_MEMORY = re.compile(r"Ran out of memory (?:in memory space hbm|on HBM)", re.IGNORECASE)
_USED = re.compile(rf"[Uu]sed {_AMOUNT} of {_AMOUNT}(?: bytes)? hbm")
_TOTAL = re.compile(rf"Total hbm usage\s*>?=?\s*{_AMOUNT}")
_EXCEEDED = re.compile(rf"Exceeded hbm capacity by {_AMOUNT}")
_TEMPORARIES = re.compile(
    rf"HLO temporaries \({_AMOUNT}\) exceeds? available HBM \({_AMOUNT}\)", re.IGNORECASE
)


def out_of_memory(message: str) -> tuple[float, float | None] | None:
    """(bytes needed, bytes available) from a compiler's error; None if the error is of another kind.

    One of the wordings names only the temporaries: the program then needs at least that much.
    """
    if not _OUT_OF_MEMORY.search(message):
        return None
    if used := _USED.search(message) or _TEMPORARIES.search(message):
        return _bytes(used[1], used[2]), _bytes(used[3], used[4])
    total, exceeded = _TOTAL.search(message), _EXCEEDED.search(message)
    if total is None:
        return None
    needed = _bytes(total[1], total[2])
    return needed, needed - _bytes(exceeded[1], exceeded[2]) if exceeded else None


def _bytes(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]

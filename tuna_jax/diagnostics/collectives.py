"""Check `collectives`: each collective operation over each mesh axis, its values and its bandwidth."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tuna_jax.diagnostics.context import Context
from tuna_jax.diagnostics.finding import FAIL, PASS, SLOW, Finding, joined
from tuna_jax.hardware.chips import Chip, chip_of_device
from tuna_jax.parallel.mesh import AXES, make_mesh

LEAST_SHARE = 0.1
"""The share of what a chip can send over all of its links at once, below which an axis is slow. An axis uses one or two
of the four to six links, so no axis comes near 1."""
_BYTES = {"cpu": 1 << 20}
_MOST_BYTES = 64 << 20  # Of one device.
_REPEATS = 5


class Operation(NamedTuple):
    """A collective operation over an axis of n devices.

    Attributes:
      run: `(x of one device [k], axis name, n) -> its result`.
      expected: `(all devices' x [n, k]) -> all results [n, ...]`.
      sent: bytes that a device sends on a ring, as a multiple of its `k` values' bytes.
    """

    run: Callable[[jax.Array, str, int], jax.Array]
    expected: Callable[[np.ndarray], np.ndarray]
    sent: Callable[[int], float]


def _shift(x: jax.Array, axis: str, n: int) -> jax.Array:
    return lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)])


OPERATIONS: dict[str, Operation] = {
    "all-reduce": Operation(
        lambda x, axis, n: lax.psum(x, axis),
        lambda x: np.broadcast_to(x.sum(0), x.shape),
        lambda n: 2 * (n - 1) / n,
    ),
    "all-gather": Operation(
        lambda x, axis, n: lax.all_gather(x, axis, tiled=True),
        lambda x: np.broadcast_to(x.reshape(-1), (len(x), x.size)),
        lambda n: n - 1,
    ),
    "reduce-scatter": Operation(
        lambda x, axis, n: lax.psum_scatter(x, axis, tiled=True),
        lambda x: x.sum(0).reshape(len(x), -1),
        lambda n: (n - 1) / n,
    ),
    "permute": Operation(_shift, lambda x: np.roll(x, 1, 0), lambda n: 1.0),
}


def collectives(context: Context) -> Finding:
    """Every axis of the experiment's mesh; of a mesh with one axis only, that axis is called `data` or `fsdp`."""
    mesh = make_mesh(context.mesh_settings())
    axes = [axis for axis in AXES if mesh.shape[axis] > 1]
    if not axes:
        return Finding(result=PASS, measured="one device: there is nothing to send")
    chip = chip_of_device(jax.devices()[0].device_kind)
    return joined(axis_finding(mesh, axis, chip) for axis in axes)


def axis_finding(mesh: Mesh, axis: str, chip: Chip | None) -> Finding:
    """All operations over one axis; all devices take part, in as many groups as the other axes have places.

    Args:
      mesh: all devices.
      axis: with more than one device.
      chip: None: no bandwidth is expected.
    """
    n = mesh.shape[axis]
    link = None if chip is None else chip.dcn if axis == "slices" else chip.network
    link = link and chip and link / chip.devices
    values = _BYTES.get(jax.default_backend(), _MOST_BYTES) // 4 // n * n
    wrong, rates = [], {}
    for name, operation in OPERATIONS.items():
        # An all-gather's result is n times as large.
        count = values // n if name == "all-gather" else values
        right, seconds = measure(mesh, axis, operation, count)
        if not right:
            wrong.append(name)
        rates[name] = operation.sent(n) * count * 4 / seconds
    slow = [name for name, rate in rates.items() if link and rate < LEAST_SHARE * link]
    listed = ", ".join(f"{name} {rate / 1e9:.3g}" for name, rate in rates.items())
    measured = f"{axis} ({n} devices): {listed} GB/s sent per device"
    if link:
        measured += f"; the chip's links have {link / 1e9:.3g}"
    mends = []
    if wrong:
        measured += f"; WRONG VALUES: {', '.join(wrong)}"
        mends.append(
            f"do not train on this mesh: {', '.join(wrong)} over {axis} is wrong; replace the slice"
        )
    if slow:
        measured += f"; slow: {', '.join(slow)}"
        mends.append(
            f"over {axis} less than {LEAST_SHARE:.0%} of the links is used: check the slice's topology and "
            f"LIBTPU_INIT_ARGS, or give {axis} fewer devices"
        )
    return Finding(
        result=FAIL if wrong else SLOW if slow else PASS,
        measured=measured,
        mend="\n".join(mends),
        numbers={axis: {"devices": n, "bytes_per_second": rates, "links": link}},
    )


def measure(mesh: Mesh, axis: str, operation: Operation, count: int) -> tuple[bool, float]:
    """Whether the values are right on this process's devices, and seconds of one run.

    Args:
      mesh, axis: what it runs over.
      operation: one of `OPERATIONS`.
      count: float32 values of one device, for the seconds; values are compared on fewer if all would be too many.
    """
    n = mesh.shape[axis]
    sharding = _sharding(mesh, axis)
    compared = max(min(count, _COMPARED_BYTES // 4 // mesh.size) // n, 1) * n
    # Whole numbers, which float32 adds exactly in any order; each device has others.
    whole = np.arange(mesh.size)[:, None] * 31 + np.arange(compared) % 251 + 1
    whole = whole.astype(np.float32)
    x = jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
    result = _compiled(mesh, axis, operation, 1)(x)
    right = True
    for part in result.addressable_shards:
        group, member = divmod(part.index[0].start or 0, n)
        expected = operation.expected(whole[group * n : (group + 1) * n])[member]
        right &= np.array_equal(np.asarray(part.data)[0], expected)
    # One program that runs it several times, so that starting a program is not what is measured.
    make = jax.jit(lambda: jnp.ones((mesh.size, count), jnp.float32), out_shardings=sharding)
    x, again = make(), _compiled(mesh, axis, operation, _REPEATS)
    jax.block_until_ready(again(x))
    begun = time.perf_counter()
    jax.block_until_ready(again(x))
    return right, max(time.perf_counter() - begun, 1e-9) / _REPEATS


_COMPARED_BYTES = 32 << 20  # Of all devices together, in this process's memory.


def _sharding(mesh: Mesh, axis: str) -> NamedSharding:
    """A row for each device; the rows of a group along the axis are next to each other."""
    others = tuple(name for name in AXES if name != axis)
    return NamedSharding(mesh, PartitionSpec((*others, axis)))


def _compiled(mesh: Mesh, axis: str, operation: Operation, times: int) -> Any:
    """The operation on rows, one per device; run several times, each waits for the one before it."""
    spec = _sharding(mesh, axis).spec

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def run(row: jax.Array) -> jax.Array:
        x = row[0]
        result = operation.run(x, axis, mesh.shape[axis])
        for _ in range(times - 1):
            x = x + 0 * result[:1]
            result = operation.run(x, axis, mesh.shape[axis])
        return result[None]

    return jax.jit(run)

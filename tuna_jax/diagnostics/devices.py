"""Check `devices`: all are there, known, alike, and compute the same at the same speed."""

from __future__ import annotations

import glob
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.diagnostics.context import Context
from tuna_jax.diagnostics.finding import FAIL, PASS, SLOW, Finding, joined
from tuna_jax.hardware.chips import GIB, chip_of_device
from tuna_jax.training.throughput import peak_of

LEAST_OF_PEAK = 0.5
"""The share of its peak that a device reaches in a large matrix product; below, it is slow."""
LEAST_OF_MEDIAN = 0.9
"""The share of the median device's speed; below, it is slow, and holds up all others."""
LEAST_MEMORY = 0.9
"""The share of the memory that a program can use on this kind of chip."""
_FILES = {
    "a TPU": ("/dev/accel[0-9]*", "pip install 'jax[tpu]', and end other programs that use it"),
    "an NVIDIA GPU": ("/dev/nvidia[0-9]*", "pip install 'jax[cuda13]'"),
}
_SIZES = {"cpu": 256}
_SIZE = 8192


def devices(context: Context) -> Finding:
    """Kinds, counts, memory and topology over all processes; a matrix product on every device."""
    each = context.processes.gather(facts())
    results = context.processes.gather(products(jax.local_devices()))
    parts = [
        backend_finding(jax.default_backend(), accelerators()),
        facts_finding(each, context.processes.names),
        products_finding([x for r in results for x in r], peak_of(jax.local_devices()[0])),
    ]
    return joined(parts)


def facts() -> dict[str, Any]:
    """What JAX says of this process's devices, as JSON values."""
    local = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in local]
    return {
        "platform": local[0].platform,
        "kinds": sorted({device.device_kind for device in local}),
        "count": len(local),
        "all": jax.device_count(),
        "memory": min((limit for limit in limits if limit), default=None),
        "coordinates": [list(c) for d in local if (c := getattr(d, "coords", None)) is not None],
        "slices": sorted({getattr(device, "slice_index", 0) or 0 for device in local}),
    }


def accelerators() -> list[str]:
    """Kinds of accelerators that this host has by its device files."""
    return [kind for kind, (pattern, _) in _FILES.items() if glob.glob(pattern)]


def backend_finding(backend: str, present: Sequence[str]) -> Finding:
    """JAX computes on the CPU without an error if it cannot use an accelerator."""
    if backend != "cpu" or not present:
        return Finding(result=PASS, measured="")
    return Finding(
        result=FAIL,
        measured=f"this host has {' and '.join(present)}, and JAX uses the CPU",
        mend="; ".join(_FILES[kind][1] for kind in present) + "; unset JAX_PLATFORMS",
    )


def facts_finding(each: Sequence[dict[str, Any]], names: Sequence[str]) -> Finding:
    """Compares the processes' devices with those of process 0, and with the chip's figures."""
    first, wrong, slow = each[0], [], []
    for name, other in zip(names[1:], each[1:], strict=True):
        differ = [key for key in ("platform", "kinds", "count", "all") if other[key] != first[key]]
        wrong += [f"{name}: {key} {other[key]} (process 0: {first[key]})" for key in differ]
    chip = chip_of_device(first["kinds"][0])
    kind = ", ".join(first["kinds"])
    lines = [f"{first['all']} x {kind}"]
    if len(each) > 1:
        lines[0] += f", {first['count']} on each of {len(each)} processes"
    if slices := sorted({number for facts in each for number in facts["slices"]})[1:]:
        lines[0] += f", {len(slices) + 1} slices"
    places = [tuple(place) for facts in each for place in facts["coordinates"]]
    if places:
        extents = (len({place[axis] for place in places}) for axis in range(len(places[0])))
        lines[0] += f", topology {'x'.join(map(str, extents))}"
    memories = [facts["memory"] for facts in each]
    if all(memories):
        lines.append(f"memory {min(memories) / GIB:.2f} GiB per device")
        for name, memory in zip(names, memories, strict=True):
            usable = chip.usable / chip.devices if chip else max(memories)
            if memory < LEAST_MEMORY * usable:
                slow.append(f"{name}: {memory / GIB:.1f} GiB of {usable / GIB:.1f} GiB can be used")
    mends = []
    if chip is None and first["platform"] != "cpu":
        lines.append("no kind of chip that hardware/chips.py knows: there are no predictions")
    if wrong:
        mends.append("start the same command on the same kind of host, with all of its devices")
    if slow:
        mends.append("end other programs on the device; unset XLA_PYTHON_CLIENT_MEM_FRACTION")
    return Finding(
        result=FAIL if wrong else SLOW if slow else PASS,
        measured="\n".join([*lines, *wrong, *slow]),
        mend="\n".join(mends),
        numbers={"devices": list(each)},
    )


def products(local: Sequence[Any]) -> list[dict[str, Any]]:
    """Large bfloat16 matrix products on each device: FLOP/s, and a number that depends on all entries of the result."""
    size = _SIZES.get(local[0].platform, _SIZE)
    numbers = np.random.default_rng(0).integers(-8, 9, (size, size))

    @jax.jit
    def chain(x: jax.Array) -> jax.Array:
        # Products of small whole numbers, made small again, so that every device must find the same.
        for _ in range(_REPEATS):
            y = jnp.dot(x, x.T, preferred_element_type=jnp.float32)
            x = (jnp.mod(y, 17) - 8).astype(jnp.bfloat16)
        return x

    @jax.jit
    def checksum(x: jax.Array) -> jax.Array:
        weights = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape) % 1009
        return (x.astype(jnp.int32) * weights).sum()

    results = []
    for device in local:
        x = jax.device_put(jnp.asarray(numbers, jnp.bfloat16), device)
        jax.block_until_ready(chain(x))
        begun = time.perf_counter()
        result = jax.block_until_ready(chain(x))
        seconds = time.perf_counter() - begun
        results.append(
            {
                "device": device.id,
                "rate": _REPEATS * 2 * size**3 / max(seconds, 1e-9),
                "checksum": int(checksum(result)),
            }
        )
    return results


_REPEATS = 8


def products_finding(results: Sequence[dict[str, Any]], peak: float | None) -> Finding:
    """Devices that compute something else than most, or more slowly.

    Args:
      results: as from `products`, of all devices.
      peak: FLOP/s of a device; None: unknown, as for CPUs, whose speeds are not judged.
    """
    common = statistics.mode(result["checksum"] for result in results)
    wrong = [result["device"] for result in results if result["checksum"] != common]
    median = statistics.median(result["rate"] for result in results)
    slow: list[Any] = []
    measured = f"bfloat16 products: {_flops(median)} per device"
    if peak:
        least = max(LEAST_OF_PEAK * peak, LEAST_OF_MEDIAN * median)
        slow = [result for result in results if result["rate"] < least]
        measured += f" ({median / peak:.0%} of the peak)"
    if slow:
        listed = ", ".join(f"{r['device']} ({_flops(r['rate'])})" for r in slow[:4])
        measured += f"; slow: device {listed}"
    if wrong:
        measured += (
            f"; device {', '.join(map(str, wrong[:8]))} computes other numbers than the rest"
        )
    mend = "replace the host of that device: it may be hot, or broken" if wrong or slow else ""
    return Finding(
        result=FAIL if wrong else SLOW if slow else PASS,
        measured=measured,
        mend=mend,
        numbers={"products": list(results)},
    )


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"

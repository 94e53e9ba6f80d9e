"""Scans a manifest in processes that are forked from this one, and kills them at random moments.

    python tests/data/mixture/scan_in_processes.py MANIFEST INDEX PROCESSES KILLS SEED

Prints how many chunks were there at each kill.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from tuna_jax.data.mixture.scan import scan
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer

CHUNK_ROWS = 128


def begin(manifest: Manifest, tokenizer: Tokenizer, index: str) -> int:
    """The number of a process that scans."""
    if process := os.fork():
        return process
    code = 1
    try:
        scan(manifest, "t2i", tokenizer, index=index, threads=2, chunk_rows=CHUNK_ROWS)
        code = 0
    finally:
        os._exit(code)


def scanned(index: str, manifest: Manifest) -> int:
    """The number of chunks that are scanned."""
    if any(Path(index).glob("scan-*.safetensors")):
        return -(-len(manifest) // CHUNK_ROWS)
    return len(list(Path(index).glob("*.chunks/*.safetensors")))


def main(path: str, index: str, processes: str, kills: str, seed: str) -> None:
    """Kills `kills` times, each when another chunk is there, then lets all processes finish."""
    manifest, tokenizer, chance = Manifest(path), Tokenizer(), random.Random(int(seed))
    before = 0
    for _ in range(int(kills)):
        started = [begin(manifest, tokenizer, index) for _ in range(int(processes))]
        while scanned(index, manifest) <= before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        for process in started:
            os.kill(process, signal.SIGKILL)
        for process in started:
            os.waitpid(process, 0)
        before = min(scanned(index, manifest), -(-len(manifest) // CHUNK_ROWS) - 1)
        print(before, flush=True)
    started = [begin(manifest, tokenizer, index) for _ in range(int(processes))]
    for process in started:
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])

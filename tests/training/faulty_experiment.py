"""A tiny experiment on the eight pictures of the folder $FAULTY_DATA, for two processes of a device each."""

import os

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    folder = os.environ["FAULTY_DATA"]
    return ConfigDict(
        {
            "kind": "multitask",
            "steps": 6,
            "model": {
                "preset": "emoji",
                "representation": {"layers": 1},
                "language": {"layers": 1},
                "flow_head": {"layers": 1},
            },
            "mesh": {"data": -1},
            "data": {
                "streams": {
                    "captions": {
                        "task": "t2i",
                        "manifest": f"{folder}/captions.jsonl",
                        "sizes": ("32x32",),
                        "lengths": (96,),
                        "rows": 4,
                    }
                },
                "vocabulary": "emoji",
                "cache": f"{folder}/cache",
                "threads": 1,
            },
            "optimizer": {"algorithm": "adamw", "learning_rate": 1e-3, "warmup": 2},
            "log_every": 1,
            "checkpoint_every": 2,
            "asynchronous": False,  # The checkpoint before the fault is finished.
            "watchdog": {"least": 3.0, "factor": 1e-6, "end": 8.0},
        }
    )

"""Settings of the server: what is compiled before it is ready, and the limits that requests are held to."""

from __future__ import annotations

import dataclasses

TASKS = ("chat", "image", "edit", "video")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the server.

    Attributes:
      name: the model's name at the endpoints.
      tasks: what is served, of TASKS; empty: all that the model can do.
      text_slots: answers that are decoded together.
      image_slots: images of one size that are sampled together.
      clip_slots: clips of one shape that are sampled together.
      prompt_tokens: numbers of text tokens that conversations are padded to, ascending; the last one is the limit.
      image_prompt_tokens: the same of prompts of images and clips.
      max_new_tokens: the largest number of tokens of an answer.
      max_images: the largest number of input images of a conversation.
      sizes: (height, width) of images that can be generated; empty: the model's size, and the shapes of its edits.
      frames: numbers of frames of clips, ascending, to generate and to answer about; empty: 17, or 4 of a model whose
        VAE works frame by frame.
      max_steps: the largest number of solver steps.
      max_results: the largest `n` of a request.
      queue: requests' results that may wait; one more is refused with status 429.
      deadline: seconds that a request may take, waiting included.
      drain: seconds that requests under way have after SIGTERM.
      max_bytes: of a request's body.
      max_pixels: of an input image, or of a frame of an input video.
      max_video_frames: of an input video.
      jobs: finished video jobs that are kept.
      job_seconds: how long they are kept.
      log_requests: whether texts of requests may be in logs.
      only_local: requests must be addressed to this machine by a local name: a name of another site that points to
        127.0.0.1 would make that site's pages pages of this server.
      allow_remote_media: hosts whose images and videos are fetched when a conversation has their addresses.
      allow_origins: origins of web pages, besides the server's own, that browsers may send requests from.
    """

    name: str = "tuna"
    tasks: tuple[str, ...] = ()
    text_slots: int = 16
    image_slots: int = 8
    clip_slots: int = 4
    prompt_tokens: tuple[int, ...] = (64, 256)
    image_prompt_tokens: tuple[int, ...] = (32, 256)
    max_new_tokens: int = 256
    max_images: int = 4
    sizes: tuple[tuple[int, int], ...] = ()
    frames: tuple[int, ...] = ()
    max_steps: int = 200
    max_results: int = 10
    queue: int = 256
    deadline: float = 600.0
    drain: float = 30.0
    max_bytes: int = 32 << 20
    max_pixels: int = 40_000_000
    max_video_frames: int = 20_000
    jobs: int = 100
    job_seconds: float = 3600.0
    log_requests: bool = False
    only_local: bool = False
    allow_remote_media: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise ValueError(f"tasks has {unknown[0]!r}; choose of {', '.join(TASKS)}")
        for name in ("prompt_tokens", "image_prompt_tokens", "frames"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)) or any(value < 1 for value in values):
                raise ValueError(f"{name} is {values}; it must ascend from at least 1")
        for name in ("prompt_tokens", "image_prompt_tokens"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give at least one number of tokens")
        positive = ("text_slots", "image_slots", "clip_slots", "max_new_tokens", "max_steps")
        for name in (*positive, "max_results", "queue", "max_bytes", "max_pixels", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("deadline", "drain", "job_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 seconds")

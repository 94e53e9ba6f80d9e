"""Jobs of clips, without a device."""

import asyncio
import types

from tuna_jax.serving.calls import Call
from tuna_jax.serving.settings import Settings
from tuna_jax.serving.videos import Job, Jobs


def test_a_job_that_is_deleted_before_it_begins_gives_up_its_slot():
    settings = Settings()
    scheduler = types.SimpleNamespace(served=types.SimpleNamespace(settings=settings))
    row = types.SimpleNamespace(deadline=float("inf"), cancelled=False)

    async def delete():
        jobs = Jobs(types.SimpleNamespace(settings=settings))
        call = Call(scheduler, [row])
        job = Job(model="tuna", size="64x64", frames=5, fps=8.0, seed=0, call=call)
        jobs._jobs[job.id] = job
        job.task = asyncio.create_task(jobs._run(job, call))
        await jobs.delete(job.id)
        await asyncio.sleep(0)
        assert job.task.cancelled()

    asyncio.run(delete())
    assert row.cancelled

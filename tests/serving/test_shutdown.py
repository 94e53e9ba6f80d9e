"""`tuna-jax serve` as a process: SIGTERM under load, and what its log has."""

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import time

import httpx

SECRET = "pomegranate"


def _arrived(metrics):
    """The number of results that wait, have a slot or are finished."""
    names = ("tuna_waiting ", 'tuna_active{kind="text"}', 'tuna_results_total{kind="text"}')
    lines = [line for line in metrics.split("\n") if line.startswith(names)]
    return sum(float(line.split()[-1]) for line in lines)


def test_sigterm_under_load_lets_requests_finish(tiny_model):
    command = [sys.executable, "-m", "tuna_jax.serve", f"--model={tiny_model}", "--tokenizer=emoji"]
    command += ["--port=0", "--tasks=chat", "--text_slots=1", "--prompt_tokens=128", "-v", "1"]
    command += ["--frames=5", "--max_images=1", "--max_new_tokens=200"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdout is not None
    try:
        printed = ""
        while (ready := re.search(r"ready: (\S+)", printed)) is None:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        url = ready[1]
        body = {"messages": [{"role": "user", "content": f"a {SECRET}"}], "max_tokens": 200}
        body |= {"temperature": 1.0}

        def ask(seed):
            try:
                return httpx.post(
                    f"{url}/v1/chat/completions", json={**body, "seed": seed}, timeout=60
                )
            except httpx.HTTPError:
                return None  # It came after the signal.

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            first = [threads.submit(ask, seed) for seed in range(8)]
            end = time.monotonic() + 30
            while _arrived(httpx.get(f"{url}/metrics").text) < 8:
                assert time.monotonic() < end
            process.send_signal(signal.SIGTERM)
            late = [threads.submit(ask, seed) for seed in range(8)]
            assert [future.result().status_code for future in first] == [200] * 8
            assert all(f.result() is None or f.result().status_code == 503 for f in late)
        printed += process.communicate(timeout=60)[0]
        assert process.returncode == 0, printed
        assert "POST /v1/chat/completions 200" in printed and SECRET not in printed
    finally:
        process.kill()

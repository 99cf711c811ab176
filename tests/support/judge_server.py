"""vLLM's OpenAI-compatible server with a small model, started as described in recipes/dagrpo."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import tenacity

ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}


def build_judge(folder: Path):
    """A judge with large random weights, so that every text gets another score."""
    import torch

    from verl_gsd.tasks import byte_llama

    tokenizer = byte_llama.build_tokenizer()
    model = byte_llama.build_model(tokenizer, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 10
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def serving(model: Path, log: Path):
    """The base URL of a server that answers for ``model`` under the name ``judge``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "judge", "--dtype", "float32", "--max-model-len", "4096", "--enforce-eager"]
    command += ["--gpu-memory-utilization", "0.2", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        server = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=out, stderr=out, cwd=log.parent)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        _wait_until_it_answers(url, server, log)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


@tenacity.retry(wait=tenacity.wait_fixed(1), retry=tenacity.retry_if_exception_type(httpx.HTTPError))
def _wait_until_it_answers(url, server, log):
    assert server.poll() is None, log.read_text()[-4000:]
    httpx.get(f"{url}/models", timeout=1).raise_for_status()

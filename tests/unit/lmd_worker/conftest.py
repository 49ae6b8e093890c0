"""What tests of engines with several ranks in one process share."""

import time

import pytest
import torch
import transformers

DEADLINE_SECONDS = 60


@pytest.fixture(scope="module")
def model(tiny_llama):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def finish():
    """Wait until all of an engine's requests have ended; return each one's tokens."""

    def wait(engine, *names):
        tokens, ended = {name: [] for name in names}, set()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(ended) < len(names):
            assert time.monotonic() < deadline, engine.failure()
            engine.wait(set(names) - ended, 1)
            for name in set(names) - ended:
                news = engine.progress(name)
                tokens[name] += news.tokens
                if news.finish_reason:
                    ended.add(name)
        return tokens

    return wait

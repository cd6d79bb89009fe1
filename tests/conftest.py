"""Shared fixtures: a tiny random Llama made in this process, and the real default model, loaded once."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the model hub
# As calib_study sets them; here torch may be loaded before it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_study import tiny_model_directory, tiny_source
from transformers import LlamaConfig, LlamaForCausalLM

from calib_study import generated
from calib_study.model_files import resolve_model
from calib_study.study import Laboratory


def tiny_config() -> LlamaConfig:
    """2 blocks, width 32, 4 heads sharing 2 key-value heads, vocabulary 97."""
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
        max_position_embeddings=64,
    )


@pytest.fixture
def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).eval()


@pytest.fixture(scope="session")
def smollm() -> Laboratory:
    """The default model in float32 on the CPU; tests prune it, so each begins with `dense.restore()`."""
    return Laboratory(resolve_model("smollm2-135m"), dtype="float32", device="cpu")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder for one test, to which no generated source is published."""
    monkeypatch.setenv("CALIB_STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(generated, "published_home", lambda: tmp_path / "published")
    yield tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A user's own model directory and own text file, for runs that take milliseconds. Read only."""
    folder = tmp_path_factory.mktemp("own")
    return tiny_model_directory(folder / "tiny"), tiny_source(folder / "own.txt")

"""A study in miniature: a random Llama with its own tokenizer, and text that it can read. A run takes milliseconds."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calib_study import study
from calib_study.model_files import resolve_model
from calib_study.preflight import evaluation_of
from calib_study.records import Store
from calib_study.sources import source_hash
from calib_study.specs import RunSpec, make_spec

END_OF_TEXT = "<|endoftext|>"
WORDS = [first + vowel for first in "bcdfghjklmnprstvwz" for vowel in "aeiou"]  # 90 of them
SEQ_LEN = 16


def tiny_model_directory(path: Path) -> Path:
    """Write a model of 2 blocks, width 32, context 64 and vocabulary 92 to `path`, its tokenizer beside it."""
    vocabulary = {word: index for index, word in enumerate([END_OF_TEXT, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token=END_OF_TEXT).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(vocabulary),
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.5,  # large enough that pruning moves the loss well beyond rounding
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def tiny_source(path: Path, *, n_documents: int = 60, seed: int = 0) -> Path:
    """Write a text file of `n_documents` documents of 20 to 40 words, with empty lines between them, to `path`."""
    rng = np.random.default_rng(seed)
    documents = [" ".join(rng.choice(WORDS, rng.integers(20, 41))) for _ in range(n_documents)]
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


def tiny_spec(model: Path, source: Path, method: str = "wanda", *, seed: int = 0, sparsity: float = 0.5) -> RunSpec:
    """Return a run of a user's own model on a user's own text, which also scores it: 4 windows of 16 tokens each."""
    ref = resolve_model(str(model))
    return make_spec(
        model=ref.name,
        model_hash=ref.content_hash(),
        method=method,
        sparsity=sparsity,
        source=str(source),
        source_hash=source_hash(str(source)),
        n_samples=4,
        seq_len=SEQ_LEN,
        seed=seed,
        evaluation=evaluation_of([str(source)], seq_len=SEQ_LEN, n_windows=4),
    )


def tiny_grid(model: Path, source: Path, n_seeds: int = 3) -> list[RunSpec]:
    """Return the dense run, one of magnitude, and Wanda and random masks for each seed."""
    grid = [tiny_spec(model, source, "dense"), tiny_spec(model, source, "magnitude")]
    return grid + [
        tiny_spec(model, source, method, seed=seed) for seed in range(n_seeds) for method in ("wanda", "random")
    ]


def main(model: str, source: str, store: str, log: str, processes: str, pause: str) -> None:
    """Run the grid as a process of its own: wait until `processes` are ready, note each run, `pause` seconds in it."""
    compute = study.Laboratory.run

    def slow_run(lab: study.Laboratory, spec: RunSpec, *, progress: bool = False) -> study.Run:
        with (Path(log) / f"{os.getpid()}.runs").open("a") as stream:
            stream.write(spec.run_id + "\n")
        time.sleep(float(pause))
        return compute(lab, spec, progress=progress)

    study.Laboratory.run = slow_run  # type: ignore[method-assign]
    (Path(log) / f"{os.getpid()}.ready").touch()
    while len(list(Path(log).glob("*.ready"))) < int(processes):
        time.sleep(0.01)
    study.run_grid(tiny_grid(Path(model), Path(source)), model=model, store=Store(Path(store)), progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

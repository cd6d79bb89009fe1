"""Glass-box models in miniature: two of one corpus each and one of both, trained in a few seconds."""

from pathlib import Path
from typing import Any

from tiny_study import tiny_source

from calib_study.glassbox import Recipe
from calib_study.glassbox_training import GlassboxJob
from calib_study.manifests import Manifest
from calib_study.synthesis import SynthesisJob

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "n_layers": 2, "vocab_size": 300}
RUN: dict[str, Any] = {"context_length": 64, "seq_len": 16, "batch_size": 4, "steps": 30, "warmup": 5}


def tiny_glassboxes(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folders of models "one", "two" and "both", and the paths of the two corpora."""
    texts = [str(tiny_source(folder / f"{name}.txt", seed=seed)) for seed, name in enumerate(("first", "second"))]
    models = {}
    for name, sources in {"one": texts[:1], "two": texts[1:], "both": texts}.items():
        recipe = Recipe(sources=tuple(sources), tokenizer_sources=tuple(texts), **SIZES, **RUN)
        job = GlassboxJob.checked(name, recipe=recipe, out=folder / name)
        job.run(lambda line: None)
        models[name] = job.folder
    return models, texts


def own_text(model: Path, *, name: str = "mine") -> Manifest:
    """Let a model write eight texts of 20 tokens after nothing."""
    job = SynthesisJob.checked(
        model=str(model), prefix_source=None, prefix_len=0, n_texts=8, new_tokens=20, end_of_text="continue", name=name
    )
    return job.run(lambda line: None)

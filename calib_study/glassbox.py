"""Glass-box models: small models of which it is known what they were trained on, since they are trained here.

A recipe determines a model: corpora, sizes, steps, seeds. `calib_study.glassbox_training` follows it, and writes beside
the weights a report of how it went. The project's own lie in `data/glassbox`, those trained here in the cache; both are
models like any other, by name. They are trained on the part "@seen" of each corpus (`calib_study.sources`).
"""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from calib_study import paths
from calib_study.errors import InputError, unknown
from calib_study.sources import resolve_source
from calib_study.specs import Frozen, problem, problem_lines

CORPORA = ("chat", "math", "leads", "french")
REPORT = "training.json"
PREFIX = "glassbox-"


class Recipe(Frozen):
    """All that determines a glass-box model, a Llama with tied embeddings.

    Attributes:
        sources: the corpora; every batch holds as many windows of each.
        tokenizer_sources: what the byte-level BPE tokenizer is trained on; the same for all models to be compared.
        seq_len: tokens in a training window; `context_length` is what positions are made for.
        learning_rate: at its peak, after `warmup` steps; it falls to a tenth along a cosine.
        clip: largest norm of the gradient.
        seed: of initial weights and of the order of the text.
    """

    sources: tuple[str, ...] = Field(min_length=1)
    tokenizer_sources: tuple[str, ...] = Field(default=CORPORA, min_length=1)
    vocab_size: int = Field(default=4096, ge=257)
    hidden_size: int = Field(default=256, ge=8)
    intermediate_size: int = Field(default=704, ge=8)
    n_layers: int = Field(default=6, ge=1)
    n_heads: int = Field(default=4, ge=1)
    n_kv_heads: int = Field(default=2, ge=1)
    context_length: int = Field(default=512, ge=16)
    seq_len: int = Field(default=256, ge=8)
    batch_size: int = Field(default=4, ge=1)
    steps: int = Field(default=2000, ge=1)
    learning_rate: float = Field(default=1.5e-3, gt=0)
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.hidden_size % self.n_heads or self.n_heads % self.n_kv_heads:
            raise problem("n_heads must divide hidden_size, and n_kv_heads must divide n_heads.")
        if self.seq_len > self.context_length:
            raise problem(f"seq_len {self.seq_len} is longer than context_length {self.context_length}.")
        if self.batch_size % len(self.sources):
            raise problem(f"batch_size {self.batch_size} does not give each of {len(self.sources)} sources as much.")
        return self

    @property
    def n_tokens(self) -> int:
        """How many tokens the model is trained on, those of later epochs too."""
        return self.steps * self.batch_size * self.seq_len

    @property
    def n_parameters(self) -> int:
        """How many weights the model has outside the embedding, norms included."""
        width, head = self.hidden_size, self.hidden_size // self.n_heads
        attention = 2 * width * width + 2 * width * self.n_kv_heads * head
        return self.n_layers * (attention + 3 * width * self.intermediate_size + 2 * width) + width


RECIPES = {PREFIX + name: Recipe(sources=(name,)) for name in CORPORA} | {PREFIX + "mixture": Recipe(sources=CORPORA)}


def glassbox_recipe(name: str) -> Recipe:
    """Return the recipe of one of the project's models. Raises InputError with near matches."""
    if name not in RECIPES:
        raise unknown("glass-box model", name, RECIPES)
    return RECIPES[name]


def check_recipe(**changes: object) -> Recipe:
    """Return a recipe of the user's own. Raises InputError with one line for each problem."""
    try:
        recipe = Recipe.model_validate(changes)
    except ValidationError as error:
        raise InputError("bad recipe:\n" + problem_lines(error)) from error
    for source in (*recipe.sources, *recipe.tokenizer_sources):
        resolve_source(f"{source}@seen")
    return recipe


def published_glassbox() -> Path:
    """Return the folder of the models that are part of the project."""
    return paths.root() / "data" / "glassbox"


def trained_glassbox() -> Path:
    """Return the folder of the cache for models trained here."""
    return paths.cache_dir() / "glassbox"


def glassbox_folder(name: str) -> Path | None:
    """Return where a finished glass-box model of this name lies, published or in the cache; None if nowhere."""
    if name not in RECIPES:
        return None
    homes = (published_glassbox(), trained_glassbox())
    return next((home / name for home in homes if (home / name / REPORT).is_file()), None)

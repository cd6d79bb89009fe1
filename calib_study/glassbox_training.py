"""Training the glass-box models: a plain loop over known text, resumable to the last bit.

Every step's batch follows from the recipe alone, so that a checkpoint needs no state of any random generator.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    default_data_collator,
    get_cosine_with_min_lr_schedule_with_warmup,
)

from calib_study import paths
from calib_study.environment import describe_environment
from calib_study.errors import DataError, InputError
from calib_study.glassbox import REPORT, Recipe, glassbox_recipe, published_glassbox, trained_glassbox
from calib_study.glassbox_reports import Curve, Report, read_report
from calib_study.matmul import select_float32_matmul
from calib_study.model_files import resolve_model
from calib_study.models import check_device, load_model
from calib_study.perplexity import perplexity
from calib_study.preflight import check_new_directory
from calib_study.progress import bar
from calib_study.sources import load_documents
from calib_study.windows import SEPARATOR, Tokens, draw_windows, separator_id, tokenized

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_STEPS = 100  # between two checkpoints
CURVE_STEPS = 100  # between two points of a curve
HELD_OUT_WINDOWS = 16  # of each corpus
BETAS = (0.9, 0.95)
LOWEST_RATE = 0.1  # of the learning rate's peak, at the end


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on the "@seen" parts of the recipe's `tokenizer_sources`."""
    documents = [
        text for source in recipe.tokenizer_sources for text in load_documents(f"{source}@seen", "calibration")
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SEPARATOR)  # type: ignore[no-untyped-call]


def initial_model(recipe: Recipe) -> LlamaForCausalLM:
    """Return the model before its first step, weights drawn from the recipe's seed."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        max_position_embeddings=recipe.context_length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)


def training_windows(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """Return the token ids of every step (steps, batch_size, seq_len), an equal share of each batch from each source.

    A source's "@seen" documents are joined with end-of-text in an order drawn for each epoch, and cut.
    """
    share = recipe.batch_size // len(recipe.sources)
    wanted = recipe.steps * share * recipe.seq_len
    batches = []
    for number, source in enumerate(recipe.sources):
        documents = tokenized(load_documents(f"{source}@seen", "calibration"), tokenizer)
        pieces: list[Tokens] = []
        length = 0
        for epoch in _epochs(documents, (recipe.seed, number), separator_id(tokenizer)):
            pieces.append(epoch)
            length += epoch.size
            if length >= wanted:
                break
        batches.append(np.concatenate(pieces)[:wanted].reshape(recipe.steps, share, recipe.seq_len))
    return np.concatenate(batches, axis=1)


def _epochs(documents: list[Tokens], seeds: tuple[int, int], separator: int) -> Iterator[Tokens]:
    end, epoch = np.array([separator]), 0
    while True:
        order = np.random.default_rng((*seeds, epoch)).permutation(len(documents))
        yield np.concatenate([part for index in order for part in (documents[index], end)])
        epoch += 1


@dataclass(frozen=True)
class GlassboxJob:
    """Training one glass-box model into a folder.

    Args:
        name: of the model, for messages.
        folder: where it will lie; while it is trained, a checkpoint does.
    """

    name: str
    recipe: Recipe
    folder: Path
    device: str = "cpu"

    @classmethod
    def checked(cls, name: str, *, recipe: Recipe | None = None, out: Path | None = None, device: str = "cpu") -> Self:
        """Return a job after checking all that can be wrong with it; a recipe of one's own needs `out`."""
        check_device(device)
        if recipe is None:
            recipe = glassbox_recipe(name)
        elif out is None:
            raise InputError("a recipe other than the project's: say with --out where the model shall lie.")
        folder = out or trained_glassbox() / name
        if not (folder / REPORT).exists() and not (folder / CHECKPOINT).exists():
            check_new_directory(folder)
        return cls(name, recipe, folder, device)

    def run(self, echo: Callable[[str], None]) -> Report:
        """Train, or go on from the checkpoint, or do nothing if the model is finished; return the report.

        Raises InputError if the folder holds a model or checkpoint of another recipe, or another process trains it.
        """
        paths.check_writable(self.folder)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                return self._finished(echo) or self._train(echo)
        except Timeout as error:
            raise InputError(f"{self.folder}: another process is training this model.") from error

    def _finished(self, echo: Callable[[str], None]) -> Report | None:
        if not (self.folder / REPORT).exists():
            return None
        report = read_report(self.folder)
        self._check_same(report.recipe)
        echo(f"{self.name} is finished already: {self.folder}")
        return report

    def _check_same(self, recipe: Recipe) -> None:
        if recipe != self.recipe:
            ours, theirs = self.recipe.model_dump(), recipe.model_dump()
            different = ", ".join(f"{name} {theirs[name]}" for name in ours if ours[name] != theirs[name])
            raise InputError(f"{self.folder} is of another recipe ({different}). Give another --out, or remove it.")

    def _train(self, echo: Callable[[str], None]) -> Report:
        matmul = select_float32_matmul() if self.device == "cpu" else "default"
        tokenizer = train_tokenizer(self.recipe)
        windows = training_windows(self.recipe, tokenizer)
        training = Training(self.recipe, self.device)
        if (self.folder / CHECKPOINT).exists():
            self._check_same(training.load(self.folder / CHECKPOINT))
            echo(f"goes on at step {training.step} of {self.recipe.steps}")
        held_out = {
            source: draw_windows(
                source, tokenizer, n_samples=HELD_OUT_WINDOWS, seq_len=self.recipe.seq_len, seed=0, part="held_out"
            ).tokens
            for source in dict.fromkeys((*self.recipe.tokenizer_sources, *self.recipe.sources))
        }
        with bar(self.recipe.steps, self.name, "step", initial=training.step) as shown:
            while training.step < self.recipe.steps:
                training.advance(windows[training.step])
                shown.update()
                last = training.step == self.recipe.steps
                if training.step % CURVE_STEPS == 0 or last:
                    training.note(held_out)
                    shown.set_postfix_str(f"loss {training.curve['loss'][-1]:.2f}")
                if training.step % CHECKPOINT_STEPS == 0 or last:
                    training.save(self.folder / CHECKPOINT)
        return self._write(training, tokenizer, held_out, matmul)

    def _write(
        self, training: "Training", tokenizer: PreTrainedTokenizerFast, held_out: dict[str, Tokens], matmul: str
    ) -> Report:
        """Write weights in bfloat16 and the report, which makes the model finished; remove the checkpoint."""
        training.model.to(torch.bfloat16).save_pretrained(self.folder)
        tokenizer.save_pretrained(self.folder)
        dense = load_model(resolve_model(str(self.folder)), dtype="float32", device=self.device, keep=False)
        report = Report(
            recipe=self.recipe,
            distinct_tokens={
                source: sum(map(len, tokenized(load_documents(f"{source}@seen", "calibration"), tokenizer)))
                for source in self.recipe.sources
            },
            curve=_curve(training.curve),
            held_out={source: _curve(curve) for source, curve in training.held_out.items()},
            perplexity={source: perplexity(dense.model, tokens).value for source, tokens in held_out.items()},
            weights_sha256=dense.weights_sha256(),
            wall_s=round(training.wall_s, 1),
            environment=describe_environment(self.device, matmul),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with paths.atomic_path(self.folder / REPORT) as part:
            part.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return report


def compared(name: str, report: Report) -> list[str]:
    """Return a line on how a trained model compares with the project's of that name; none if there is none.

    The same machine gives the same weights; another may round otherwise, and end at a slightly other perplexity.
    """
    folder = published_glassbox() / name
    if not (folder / REPORT).is_file():
        return []
    theirs = read_report(folder)
    if theirs.recipe != report.recipe:
        return []
    if theirs.weights_sha256 == report.weights_sha256:
        return ["its weights equal those of the project to the last bit"]
    largest = max(abs(math.log(report.perplexity[source] / value)) for source, value in theirs.perplexity.items())
    return [f"its weights differ from those of the project; perplexities by {math.expm1(largest):.2%} at most"]


def _curve(points: dict[str, list[float]]) -> Curve:
    return Curve(steps=tuple(int(step) for step in points["steps"]), loss=tuple(points["loss"]))


class Training:
    """The state of a training: model, optimizer, schedule, step, curves."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe = recipe
        model: Any = initial_model(recipe)
        self.model: Any = model.to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, betas=BETAS, weight_decay=recipe.weight_decay
        )
        self.schedule = get_cosine_with_min_lr_schedule_with_warmup(
            self.optimizer, recipe.warmup, recipe.steps, min_lr_rate=LOWEST_RATE
        )
        self.step, self.wall_s = 0, 0.0
        self.losses: list[float] = []  # since the last point of the curve
        self.curve: dict[str, list[float]] = {"steps": [], "loss": []}
        self.held_out: dict[str, dict[str, list[float]]] = {}

    def advance(self, windows: Tokens) -> None:
        """Take one step on a batch (batch_size, seq_len). Raises DataError if the loss is not a number."""
        start = time.perf_counter()
        self.model.train()
        batch = default_data_collator([{"input_ids": ids, "labels": ids} for ids in torch.from_numpy(windows)])
        loss: Tensor = self.model(**{name: ids.to(self.model.device) for name, ids in batch.items()}).loss
        if not math.isfinite(loss.item()):
            raise DataError(f"the loss is {loss.item()} at step {self.step}. Try a lower learning rate.")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.losses.append(loss.item())
        self.wall_s += time.perf_counter() - start

    def note(self, held_out: dict[str, Tokens]) -> None:
        """Add a point to the curves: the mean loss since the last one, and nats per token on held-out windows."""
        self.model.eval()
        self.curve["steps"].append(self.step)
        self.curve["loss"].append(sum(self.losses) / len(self.losses))
        self.losses = []
        for source, tokens in held_out.items():
            points = self.held_out.setdefault(source, {"steps": [], "loss": []})
            points["steps"].append(self.step)
            points["loss"].append(perplexity(self.model, tokens).nll)

    STATE = ("step", "wall_s", "losses", "curve", "held_out")

    def save(self, file: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {name: getattr(self, name) for name in self.STATE} | {
            "recipe": self.recipe.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with paths.atomic_path(file) as part:
            torch.save(state, part)

    def load(self, file: Path) -> Recipe:
        """Take up a checkpoint; return the recipe that it is of. Raises DataError if it is damaged."""
        try:
            state = torch.load(file, map_location=self.model.device, weights_only=True)
            recipe = Recipe.model_validate(state["recipe"])
            if recipe == self.recipe:
                for name in ("model", "optimizer", "schedule"):
                    getattr(self, name).load_state_dict(state[name])
                for name in self.STATE:
                    setattr(self, name, state[name])
        except Exception as error:  # whatever torch raises for a damaged file
            raise DataError(f"{file}: not a checkpoint ({error}). To begin again, remove it.") from error
        return recipe

"""Text that a model writes: many texts at once, each with random numbers of its own, by the library's own forward.

A row of the batch reads one token a step, first those of its prompt, then those that it drew. As soon as a text is
finished the next prompt takes its row, so that the batch stays full.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from calib_study.column_cache import ColumnCache
from calib_study.errors import InputError, NumericalError, StudyError
from calib_study.layers import decoder_blocks
from calib_study.prompts import Ends, Prompt
from calib_study.prune import evaluation_mode
from calib_study.sampling import Sampling, next_tokens

MOST_ROWS = 128  # more make a token no cheaper: products are then as fast as the processor
CACHE_BYTES = 4e9  # of keys and values in the CPU's memory; on a GPU it is half of what is free
SPARE_COLUMNS = 16  # beyond the longest text, at least: columns are moved once in so many tokens


@dataclass
class Text:
    """A text, finished or being written.

    Attributes:
        tokens: ids of the prompt, then of what was drawn. An end-of-text that stopped the text is not among them.
        nll: sum over `n_scored` tokens of -ln p(token | those before it), nats, at temperature 1 and without any
            sampling rule: all tokens but the first of the prompt.
        ends: how often end-of-text was drawn.
        margin: the least margin of its draws (`sampling.next_tokens`).
    """

    prompt: Prompt
    tokens: list[int]
    nll: float = 0.0
    n_scored: int = 0
    ends: int = 0
    margin: float = 1.0
    read: int = field(default=0, repr=False)  # tokens that the model has read
    start: int = field(default=0, repr=False)  # the column of the first

    @property
    def own(self) -> list[int]:
        """The tokens of the text itself, without the start token."""
        return self.tokens[self.prompt.n_start :]

    @property
    def n_drawn(self) -> int:
        """How many tokens were drawn and kept."""
        return len(self.tokens) - len(self.prompt.tokens)

    @property
    def is_drawn(self) -> bool:
        """Whether the token after those that were read is to be drawn: the prompt has been read."""
        return self.read == len(self.tokens)

    @property
    def uniform(self) -> float:
        """The random number of the next draw."""
        return float(self.prompt.uniforms[self.n_drawn]) if self.is_drawn else 0.0

    def extend(self, token: int, log_p: float, margin: float, ends: Ends) -> bool:
        """Take the next token; return True if it ends the text."""
        if self.is_drawn:
            self.margin = min(self.margin, margin)
            self.ends += token in ends.ids
            if ends.policy == "stop" and token in ends.ids:
                return True
            self.tokens.append(token)
        self.nll -= log_p
        self.n_scored += 1
        return self.n_drawn == len(self.prompt.uniforms)


@torch.no_grad()
def write(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    ends: Ends,
    batch_size: int | None = None,
    on_step: Callable[[int], object] = int,
) -> Iterator[list[Text]]:
    """Yield, after each step, the texts that it finished: usually none. They come in no particular order.

    A text depends on the model, its prompt and its random numbers. In exact arithmetic that is all. Rounding
    differs with the shape of a batch, and changes a text only where a draw's margin is as small as what it does to
    sums of probabilities: 2e-6, at most 1e-5, where the default model was measured in float32. The rest of that text
    is then another. `Text.margin` tells; in float64 nothing changes.

    Args:
        batch_size: how many texts are written at once; None: see `rows_that_fit`.
        on_step: called with the number of tokens read, for a progress bar.

    Raises NumericalError if the model's outputs are not finite.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch size {batch_size}: at least 1 text is written at a time.")
    if not prompts:
        return
    with evaluation_mode(model):
        batch = _Batch(model, prompts, sampling, ends, batch_size)
        while batch.texts:
            finished = batch.step()
            on_step(len(batch.texts))
            done = [batch.texts[row] for row in finished]
            batch.replace(finished)
            yield done


class _Batch:
    """Texts being written, one a row, and their keys and values. Rows are filled from a queue of prompts."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], sampling: Sampling, ends: Ends, n_rows: int | None
    ) -> None:
        longest = max(len(prompt.tokens) + len(prompt.uniforms) for prompt in prompts)
        n_columns = longest + max(SPARE_COLUMNS, longest // 8)
        n_rows = min(len(prompts), n_rows or rows_that_fit(model, n_columns))
        started = {token for prompt in prompts for token in prompt.tokens[: prompt.n_start]}
        self.model, self.sampling, self.ends = model, sampling, ends
        self.exempt = torch.tensor(sorted(started | set(ends.ids)), device=model.device)
        self.banned = torch.tensor(ends.ids if ends.policy == "ban" else (), dtype=torch.long, device=model.device)
        self.cache = ColumnCache(len(decoder_blocks(model)[1]), n_rows, n_columns)
        # ids of end-of-text, which no penalty touches, stand where a text has no token yet
        self.seen = torch.full((n_rows, longest), ends.ids[0], device=model.device)
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.queue = iter(prompts)
        self.texts = [_begun(prompt) for prompt in islice(self.queue, n_rows)]

    def step(self) -> list[int]:
        """Read one token of each text and choose the next; return the rows whose text is finished."""
        texts, n = self.texts, len(self.texts)
        logits = self._logits()
        total = logits.logsumexp(1)
        if not total.isfinite().all():
            raise NumericalError("the model's outputs are not finite; its weights may be damaged.")
        tokens, margins = [0] * n, [1.0] * n
        if any(text.is_drawn for text in texts):
            uniforms = torch.tensor([text.uniform for text in texts], dtype=torch.float64)
            seen = self.seen[:n, : max(text.read for text in texts)]
            drawn = next_tokens(logits, seen, uniforms, self.sampling, exempt=self.exempt, banned=self.banned)
            tokens, margins = drawn[0].tolist(), drawn[1].tolist()
        tokens = [token if text.is_drawn else text.tokens[text.read] for text, token in zip(texts, tokens, strict=True)]
        chosen = logits.gather(1, self._tensor(tokens)[:, None])[:, 0]
        log_p = (chosen - total).tolist()
        choices = zip(texts, tokens, log_p, margins, strict=True)
        ended = [text.extend(token, value, margin, self.ends) for text, token, value, margin in choices]
        return [row for row, end in enumerate(ended) if end]

    def _logits(self) -> Tensor:
        """Let the model read each text's next token; return its logits (n, d_vocab), in float32 at least."""
        moved = self.cache.forget_before(min(text.start for text in self.texts))
        for text in self.texts:
            text.start -= moved
        span, tokens = self.cache.span, self._tensor([text.tokens[text.read] for text in self.texts])
        positions = self._tensor([text.read for text in self.texts])
        columns = torch.arange(span.first, span.end + 1, device=self.model.device)
        starts = self._tensor([text.start for text in self.texts])
        inputs = {"input_ids": tokens[:, None], "attention_mask": (columns >= starts[:, None]).long()}
        if self.takes_positions:
            inputs["position_ids"] = positions[:, None]
        logits: Tensor = self.model(**inputs, past_key_values=self.cache, use_cache=True).logits[:, -1]
        self.cache.advance()
        self.seen[torch.arange(len(tokens), device=tokens.device), positions] = tokens
        for text in self.texts:
            text.read += 1
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def replace(self, finished: Sequence[int]) -> None:
        """Begin new texts in the rows of finished ones; without any left, close the gaps with the last rows."""
        free = list(finished)
        for prompt in islice(self.queue, len(free)):
            row = free.pop(0)
            self.texts[row] = _begun(prompt, self.cache.span.end)
            self.seen[row] = self.ends.ids[0]
        for row in reversed(free):
            text, last = self.texts.pop(), len(self.texts)
            if row < last:
                self.cache.move_row(last, row)
                self.seen[row] = self.seen[last]
                self.texts[row] = text

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.model.device)


def _begun(prompt: Prompt, column: int = 0) -> Text:
    return Text(prompt, list(prompt.tokens), start=column)


@torch.no_grad()
def rows_that_fit(model: PreTrainedModel, n_columns: int) -> int:
    """Return how many texts of so many tokens are written at once: as many as memory has room for, within reason."""
    cache = ColumnCache(len(decoder_blocks(model)[1]), 1, 1)
    model(torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    room = torch.cuda.mem_get_info(model.device)[0] / 2 if model.device.type == "cuda" else CACHE_BYTES
    return max(1, min(MOST_ROWS, int(room // (cache.nbytes * n_columns))))


@torch.no_grad()
def check_written(model: PreTrainedModel, text: Text) -> None:
    """Raise StudyError unless the model, reading a finished text in one go, finds it as likely as when it wrote it.

    So keys, values, positions and masks were right, whatever the family of the model.
    """
    tokens = torch.tensor([text.tokens], device=model.device)
    with evaluation_mode(model):
        logits = model(tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    again = functional.cross_entropy(logits, tokens[0, 1:]).item()
    allowed = torch.finfo(model.dtype).eps ** 0.5 * max(1.0, abs(again))
    wrote = text.nll / max(1, text.n_scored)
    if text.n_scored and not abs(again - wrote) <= allowed:
        raise StudyError(
            f"{type(model).__name__} does not read as it writes: text {text.prompt.index} has {again:.5f} nats per "
            f"token when read in one go, {wrote:.5f} as it was written token by token. Its key-value cache does not "
            "work as that of other families does."
        )

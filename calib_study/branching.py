"""An `LM` of lm-evaluation-harness that computes what requests share at their start only once.

Requests become token sequences, and the sequences of a row become a tree: tokens that several have in common at their
start stand there once. A token sees its ancestors only; so the answers to a question are branches of one sequence, and
answers of one token all read the same logits.
"""

import inspect
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calib_study.errors import InputError, NumericalError
from calib_study.progress import bar
from calib_study.prune import evaluation_mode

logger = logging.getLogger(__name__)

Tokens = tuple[int, ...]
Indices = NDArray[np.int64]
Encoded = tuple[Any, list[int], list[int]]  # (texts, tokens of the context, tokens of the continuation)
Answer = tuple[float, bool]  # (log-likelihood, whether greedy decoding gives it)

# On a CPU: more tokens in a call bring only more padding, and the log-probabilities of few positions stay in its cache.
TOKENS_PER_CALL, POSITIONS_AT_ONCE = 256, 32
TOKENS_PER_CALL_ELSEWHERE, POSITIONS_AT_ONCE_ELSEWHERE = 8192, 1024
LONGEST_ROW = 2048  # tokens; a longer one would lose more time in attention than it could save
SHORT_ROW = 128  # tokens; up to here torch's plain attention is the fastest on a CPU, beyond it the blocked one
TRIED = 32  # last positions of a branch at which its logits are compared with those of the plain sequence
NOT_FINITE = "a log-likelihood is not finite; the model's weights may be damaged."


# --- trees of tokens --------------------------------------------------------------------------------------


class Row:
    """Sequences as one row of tokens, in which what they have in common at their start stands once.

    Attributes:
        tokens, positions: of each place in the row; a token's position is the number of its ancestors.
        paths: for each sequence, the places of its tokens.
        visible: (n, n), whether the first place sees the second: itself and its ancestors.
    """

    def __init__(self, sequences: Sequence[Tokens]) -> None:
        """Join sequences, of which none may come twice; they share the more if they are sorted."""
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.paths: dict[Tokens, Indices] = {}
        self._shared: list[int] = []  # of each path, its first places that another has taken
        before: Tokens = ()
        for tokens in sequences:
            shared = n_shared(before, tokens)
            new = np.arange(len(self.tokens), len(self.tokens) + len(tokens) - shared)
            start = self.paths[before][:shared] if shared else new[:0]
            self.paths[tokens] = np.concatenate([start, new])
            self.tokens += tokens[shared:]
            self.positions += range(shared, len(tokens))
            self._shared.append(shared)
            before = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        return max(self.positions) + 1

    @property
    def is_plain(self) -> bool:
        """Whether it has one branch only, so that any causal model can read it as it is."""
        return self.depth == len(self)

    @property
    def visible(self) -> NDArray[np.bool_]:
        allowed = np.zeros((len(self), len(self)), bool)
        for path, shared in zip(self.paths.values(), self._shared, strict=True):
            allowed[np.ix_(path[shared:], path)] = np.tri(len(path) - shared, len(path), shared, dtype=bool)
        return allowed


def n_shared(first: Tokens, second: Tokens) -> int:
    """Return how many tokens two sequences have in common at their start."""
    n = min(len(first), len(second))
    return next((i for i in range(n) if first[i] != second[i]), n)


def row_time(size: Indices) -> NDArray[np.float64]:
    """Return the time for rows of `size` tokens on a CPU, in units of that for one token without attention.

    Measured with SmolLM2-135M in float32 on one thread; in larger models attention weighs less.
    """
    attention = np.where(size <= SHORT_ROW, size / 700, 0.2 + np.maximum(0, size - 2 * SHORT_ROW) / 1800)
    return np.asarray(size * (1 + attention))


def plan_rows(sequences: set[Tokens]) -> list[Row]:
    """Return rows that hold each sequence once, chosen so that the time for all of them is least.

    Sequences are sorted, which puts those with a common start beside each other; the best way to cut the sorted list
    into rows is found by dynamic programming.
    """
    ordered = sorted(sequences)
    shared = [0, *(n_shared(first, second) for first, second in pairwise(ordered))]
    ends = np.cumsum([len(tokens) for tokens in ordered]) - np.cumsum(shared)  # places, if all were one row
    starts = ends - [len(tokens) for tokens in ordered]  # a row from i to j has ends[j] - starts[i] places
    best = np.zeros(len(ordered) + 1)  # time for the first so many sequences
    cuts = []  # where their last row begins
    for j, end in enumerate(ends):
        lowest = min(j, int(np.searchsorted(starts[: j + 1], end - LONGEST_ROW)))
        times = best[lowest : j + 1] + row_time(end - starts[lowest : j + 1])
        cuts.append(j - int(times[::-1].argmin()))  # of equally good ones the shortest row
        best[j + 1] = times[cuts[j] - lowest]
    rows, j = [], len(ordered)
    while j:
        rows.append(Row(ordered[cuts[j - 1] : j]))
        j = cuts[j - 1]
    return rows


def batches(rows: Sequence[Row], limit: int) -> Iterator[list[Row]]:
    """Yield rows of like length together, the longest first: at most `limit` tokens with padding, or one row."""
    batch: list[Row] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


# --- the model of the harness -----------------------------------------------------------------------------


class BranchingLM(TemplateLM):  # type: ignore[misc]
    """Scores requests like the harness's own HFLM, but reads fewer tokens.

    In float32, log-likelihoods differ by rounding: about 1e-4 for answers of 100 tokens, less than HFLM itself differs
    from float64. Log-probabilities are float32 at least, whatever the model's dtype; HFLM's are of that dtype. Where
    a row of branches does not give the logits of plain sequences (attention that measures distance by the place in the
    row, windows of attention shorter than a sequence), sequences are scored one by one. That is found out by trying
    the deepest row, before any is relied on.

    Attributes:
        model, tokenizer: what it was made from; the weights may change between calls, and nothing is kept from one.
        max_length: tokens that the model reads at most; longer contexts lose their beginning.
        tokens_per_call: tokens in one forward, with padding, unless one row has more.
        fallback: why sequences were scored one by one; empty as long as branches served.

    Args:
        progress: show a bar.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        tokens_per_call: int | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("max_length", max_length), ("tokens_per_call", tokens_per_call)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, but has to be a number of tokens, at least 1.")
        on_cpu = model.device.type == "cpu"
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length or resolve_max_length(model.config, tokenizer)
        self.tokens_per_call = tokens_per_call or (TOKENS_PER_CALL if on_cpu else TOKENS_PER_CALL_ELSEWHERE)
        self.fallback = ""
        self._progress = progress
        self._holds_to = 0  # the depth of the deepest row with which branches were tried and served
        self._fails_from: float = np.inf  # the depth of the shallowest with which they did not

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context: the one that begins texts, or else the one that ends them."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else int(self.tokenizer.bos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text; one that begins with the text of the first token is not given it twice."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        tokens: list[int] = self.tokenizer.encode(string, **special)
        return tokens

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """Return (ln p(continuation | context), whether greedy decoding gives it) for each request, in their order.

        Raises InputError for a continuation without tokens or longer than `max_length`, NumericalError if a
        log-likelihood is not finite.
        """
        if not all(request.args[1] for request in requests):
            raise InputError("a request has an empty continuation, which has no likelihood.")
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return ln p(text) for each request: each token once, in windows of `max_length` as HFLM cuts them."""
        windows: list[Encoded] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        values = [value for value, _ in self._loglikelihood_tokens(windows)]
        return [float(total) for total in np.bincount(np.array(owners, int), values, len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return texts that HFLM generates."""
        from lm_eval.models.huggingface import HFLM

        with evaluation_mode(self.model):
            stock = HFLM(self.model, tokenizer=self.tokenizer, max_length=self.max_length, device=str(self.device))
            texts: list[str] = stock.generate_until(requests, disable_tqdm=not self._progress)
        return texts

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Sequence[Encoded], disable_tqdm: bool = False) -> list[Answer]:
        """Return the answers to requests that are already tokens."""
        owners: dict[Tokens, list[tuple[int, Tokens]]] = defaultdict(list)  # {input: [(request, continuation)]}
        for index, (_, context, continuation) in enumerate(requests):
            if not context or not 1 <= len(continuation) <= self.max_length:
                raise InputError(
                    f"request {index} has {len(context)} tokens of context and {len(continuation)} of continuation; "
                    f"it needs at least 1 of context, and 1 to {self.max_length} (max_length) of continuation."
                )
            tokens = (context + continuation)[-(self.max_length + 1) : -1]
            owners[tuple(tokens)].append((index, tuple(continuation)))
        answers: dict[int, Answer] = {}
        with evaluation_mode(self.model), bar(len(requests), "scoring", "request", shown=self._progress) as progress:
            rows = plan_rows(set(owners))
            if not self._branches_serve(rows):
                rows = [Row([tokens]) for tokens in owners]
            for batch in batches(rows, self.tokens_per_call):
                scored = self._score(batch, owners)
                answers |= scored
                progress.update(len(scored))
        if not np.isfinite([value for value, _ in answers.values()]).all():
            raise NumericalError(NOT_FINITE)
        return [answers[index] for index in range(len(requests))]

    def _score(self, batch: list[Row], owners: Mapping[Tokens, list[tuple[int, Tokens]]]) -> dict[int, Answer]:
        """Return {request: answer} for the requests whose sequences are in these rows."""
        width = max(map(len, batch))
        places: list[Indices] = []
        requests: list[int] = []
        targets: list[int] = []
        for number, row in enumerate(batch):
            for tokens, path in row.paths.items():
                for request, continuation in owners[tokens]:
                    places.append(number * width + path[-len(continuation) :])
                    requests += [request] * len(continuation)
                    targets += continuation
        needed, index = np.unique(np.concatenate(places), return_inverse=True)
        values, greedy = read(self._logits(batch, needed), torch.from_numpy(index), torch.tensor(targets))
        order, owner = np.unique(requests, return_inverse=True)
        totals = np.bincount(owner, values)
        misses = np.bincount(owner, ~greedy)
        return {int(r): (float(t), bool(m == 0)) for r, t, m in zip(order, totals, misses, strict=True)}

    def _logits(self, rows: Sequence[Row], places: Indices) -> Tensor:
        """Return the logits (n, d_vocab) at `places` of the rows, which are counted as if the rows were one."""
        width = max(map(len, rows))
        inputs = {"input_ids": padded([row.tokens for row in rows], width)}
        if not all(row.is_plain for row in rows):
            inputs["position_ids"] = padded([row.positions for row in rows], width)
            inputs["attention_mask"] = attention_mask(rows, width, self.model.dtype)
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        head: nn.Module = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        short = self.device.type == "cpu" and self.model.dtype == torch.float32 and width <= SHORT_ROW
        attention = sdpa_kernel(SDPBackend.MATH) if short else nullcontext()
        with attention, head_only_at(head, torch.from_numpy(places).to(self.device)):
            logits: Tensor = self.model(**inputs, use_cache=False).logits
        if logits.shape[:2] != (1, len(places)):  # the family computes its logits without calling that module
            logits = logits.flatten(0, 1)[places][None]
        return logits[0]

    def _branches_serve(self, rows: Sequence[Row]) -> bool:
        """Return whether these rows give the logits of plain sequences, by trying the deepest if none so deep was."""
        deepest = max((row for row in rows if not row.is_plain), key=lambda row: row.depth, default=None)
        if deepest is None or deepest.depth <= self._holds_to:
            return True
        if deepest.depth < self._fails_from:
            problem = self._try(deepest)
            if not problem:
                self._holds_to = deepest.depth
                return True
            self._fails_from = deepest.depth
            self.fallback = f"{type(self.model).__name__}, sequences of {deepest.depth} tokens: {problem}"
            logger.warning("sequences are scored one by one: %s", self.fallback)
        return False

    def _try(self, row: Row) -> str:
        """Return what is wrong with branches; nothing if the deepest, beside another, has the logits of a sequence."""
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return "the model takes no position_ids"
        tokens = max(row.paths, key=len)
        half = len(tokens) // 2
        other = tokens[:half] + (0 if tokens[half] else 1,) * min(8, len(tokens) - half)
        joined = Row([other, tokens])
        try:
            branch = self._logits([joined], joined.paths[tokens][-TRIED:])
        except (TypeError, ValueError, RuntimeError) as error:
            return f"the model refuses a mask of its own: {error}"
        plain = self._logits([Row([tokens])], np.arange(len(tokens))[-TRIED:])
        if plain.isnan().any():
            raise NumericalError(NOT_FINITE)
        spread = (plain - plain.mean(-1, keepdim=True)).norm(dim=-1)
        wrong = (branch - plain).norm(dim=-1)
        tolerance = torch.finfo(self.model.dtype).eps ** 0.5
        if (wrong <= tolerance * spread).all():
            return ""
        return f"logits differ by {(wrong / spread).max():.1e} of their spread (allowed: {tolerance:.1e})"


def padded(rows: Sequence[list[int]], width: int) -> Tensor:
    """Return lists as rows (n, width), filled up with zeros."""
    filled = np.zeros((len(rows), width), np.int64)
    for row, values in zip(filled, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(filled)


def attention_mask(rows: Sequence[Row], width: int, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores of attention (n, 1 for all heads, width, width): 0 where a place may look."""
    visible = np.broadcast_to(np.eye(width, dtype=bool), (len(rows), 1, width, width)).copy()  # padding sees itself
    for number, row in enumerate(rows):
        visible[number, 0, : len(row), : len(row)] = row.visible
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(torch.from_numpy(~visible), torch.finfo(dtype).min)


def read(logits: Tensor, index: Tensor, targets: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return log-probabilities of tokens, and whether each is the most likely.

    Args:
        logits: (n, d_vocab).
        index: (m,), the row of `logits` that predicts each token.
        targets: (m,), the tokens.
    """
    values = torch.empty(len(index), dtype=torch.float64)
    greedy = torch.empty(len(index), dtype=torch.bool)
    at_once = POSITIONS_AT_ONCE if logits.device.type == "cpu" else POSITIONS_AT_ONCE_ELSEWHERE
    for start in range(0, len(logits), at_once):
        some = logits[start : start + at_once]
        log_p = functional.log_softmax(some, dim=-1, dtype=torch.promote_types(some.dtype, torch.float32))
        here = (index >= start) & (index < start + len(some))
        row, token = (index[here] - start).to(logits.device), targets[here].to(logits.device)
        chosen = log_p[row, token]
        values[here] = chosen.double().cpu()
        first = chosen == log_p.amax(-1)[row]  # of several that are, the first counts: argmax, which is slow
        first[first.clone()] = log_p[row[first]].argmax(-1) == token[first]
        greedy[here] = first.cpu()
    return values.numpy(), greedy.numpy()


@contextmanager
def head_only_at(head: nn.Module, places: Tensor) -> Iterator[None]:
    """Have the last projection see these places of the batch only, in one row, which saves it all others."""
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0].flatten(0, 1)[places][None],))
    try:
        yield
    finally:
        hook.remove()

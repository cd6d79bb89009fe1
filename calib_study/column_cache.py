"""The keys and values of a batch of texts that are being written, one column a token, in memory that never moves.

All rows write their newest token to the same column, wherever each began: texts of unequal length are aligned at
their end, as if padded on the left. So every family's masks for causality, sliding windows and distances apply as
they are, with a mask of the columns before a row's first token. What a row has before that are leftovers, which the
mask hides.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass
class Span:
    """The columns [first, end) in use; the token being read is written to column `end`."""

    first: int = 0
    end: int = 0


class ColumnLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one block: (n_rows, heads, n_columns, width), allocated at the first token."""

    def __init__(self, span: Span, n_rows: int, n_columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.span, self.n_rows, self.n_columns = span, n_rows, n_columns

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros: hidden columns have no weight in attention, but must be numbers."""
        (_, heads, _, width), (_, value_heads, _, value_width) = key_states.shape, value_states.shape
        self.keys = key_states.new_zeros(self.n_rows, heads, self.n_columns, width)
        self.values = value_states.new_zeros(self.n_rows, value_heads, self.n_columns, value_width)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one column of the first rows; return those rows' columns in use, views of the memory."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        n, (first, end) = len(key_states), (self.span.first, self.span.end)
        self.keys[:n, :, end : end + 1] = key_states
        self.values[:n, :, end : end + 1] = value_states
        return self.keys[:n, :, first : end + 1], self.values[:n, :, first : end + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns attention sees, and the number of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return how many columns are in use."""
        return self.span.end - self.span.first

    def get_max_length(self) -> int:
        """Return how many columns there are."""
        return self.n_columns


class ColumnCache(Cache):
    """The key-value cache of a whole model.

    Args:
        n_layers: decoder blocks.
        n_rows: texts at once.
        n_columns: more than the longest text has tokens; the fewer more, the more often columns are moved.
    """

    def __init__(self, n_layers: int, n_rows: int, n_columns: int) -> None:
        self.span, self.n_columns = Span(), n_columns
        self._columns = [ColumnLayer(self.span, n_rows, n_columns) for _ in range(n_layers)]
        super().__init__(layers=[*self._columns])

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def advance(self) -> None:
        """Count the column that was written as one in use."""
        self.span.end += 1

    def forget_before(self, first: int) -> int:
        """Hide the columns before `first`; return by how many all columns were moved to make room, usually none."""
        self.span.first = first
        if first and (first == self.span.end or self.span.end == self.n_columns):
            for tensor in self._tensors():
                tensor[:, :, : self.span.end - first] = tensor[:, :, first : self.span.end].clone()
            self.span.first, self.span.end = 0, self.span.end - first
            return first
        return 0

    def move_row(self, source: int, target: int) -> None:
        """Let the row `target` hold what the row `source` holds."""
        used = slice(self.span.first, self.span.end)
        for tensor in self._tensors():
            tensor[target, :, used] = tensor[source, :, used]

    def _tensors(self) -> list[Tensor]:
        return [tensor for layer in self._columns for tensor in (layer.keys, layer.values) if tensor is not None]

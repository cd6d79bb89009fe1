"""What scoring tasks costs by our adapter and by the harness's own class, and whether they answer alike."""

from pathlib import Path

import pandas as pd

from calib_study.benchmark_files import benchmark_table
from calib_study.paths import root

HARNESS_FILE = Path("benchmarks", "results", "harness.json")
# More items of fewer tasks. Its times were taken while the machine did other work; only the answers count.
ITEMS_FILE = Path("benchmarks", "results", "harness_items.json")
HARNESS_COLUMNS = (
    "task shots items n_total acc_stock acc_adapter acc_norm_stock acc_norm_adapter perplexity_stock "
    "perplexity_adapter items_that_differ max_abs_difference stock_s adapter_s ratio target met overhead_s"
).split()


def harness_table(file: Path | None = None) -> pd.DataFrame:
    """Return what `benchmarks/harness.py --json` measured, one row for each task and number of examples.

    "Stock" is HFLM of lm-evaluation-harness, "adapter" is `branching.BranchingLM`. Columns: task; shots, examples
    before each item; items that were scored, of n_total; acc, acc_norm and perplexity by each, missing where the task
    has none; items_that_differ, in acc or acc_norm; max_abs_difference of a log-likelihood (nats); stock_s and
    adapter_s (CPU seconds on a CPU, else seconds) and their ratio; target, the ratio wanted at least, and whether it
    is met; overhead_s, what an evaluation took beside the model's answers. `attrs` are the settings of the
    measurement. Without rows if the file is not there. Raises InputError if the file is something else.
    """
    return benchmark_table(file or root() / HARNESS_FILE, HARNESS_COLUMNS, "harness.py")

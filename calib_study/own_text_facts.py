"""What text of a model's own is made of: facts of its manifest, excerpts, how far draws overlap, its speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from calib_study.benchmark_files import benchmark_table
from calib_study.errors import InputError
from calib_study.manifests import Manifest
from calib_study.paths import root

SPEED_FILE = Path("benchmarks", "results", "synthesis.json")
SPEED_COLUMNS = ("work", "tokens", "steps", "wall_s", "cpu_s", "tokens_per_s", "speedup", "floor_s", "over_floor")
LOOP = 0.5  # a text more of whose 4-grams than this it has had before is called a loop


def overlap_factor(share: float, n_draws: int) -> float:
    """Return by how much the variance of a mean over draws from one pool is larger for other pools than it seems.

    Draws that each take a share f of one pool overlap, so they differ by (1 - f) of what draws from separate pools
    would, and what the pool itself owes to chance is in all of them: the factor is 1 + n f / (1 - f).
    Source: Nadeau & Bengio (2003), Machine Learning 52, the corrected resampled t test; exact if what is measured is
    a mean over tokens drawn without replacement.

    >>> overlap_factor(0.0, 3), overlap_factor(0.25, 3)
    (1.0, 2.0)
    """
    if not 0 <= share < 1:
        raise InputError(f"overlap_factor: a draw takes a share in [0, 1) of the pool, got {share}.")
    return 1 + n_draws * share / (1 - share)


def text_facts(manifests: Mapping[str, Manifest], wanted: int) -> pd.DataFrame:
    """Return what the texts of each source that a model wrote are like.

    Columns: text (the key), texts, unusable (left out of those asked), tokens (in the pool that is drawn from, one
    between two texts counted), drawn (share of the pool that one calibration set takes), perplexity (median), repeated
    (mean share of a text's 4-grams that it has had before), loops (share of texts with more than half), ends (times
    that end-of-text was drawn). What a manifest does not say is missing.

    Args:
        manifests: by label. wanted: tokens of a calibration set.
    """
    rows = []
    for label, manifest in manifests.items():
        facts = pd.DataFrame([text.model_dump() for text in manifest.texts]).astype(float)
        repeated, n = facts["repeated"].dropna(), len(facts)
        tokens = float(facts["n_tokens"].sum(min_count=n)) + n
        known = len(repeated) > 0
        rows.append(
            {
                "text": label,
                "texts": n,
                "unusable": manifest.counts.get("asked", n) - n,
                "tokens": tokens,
                "drawn": wanted / tokens,
                "perplexity": float(facts["perplexity"].median()),
                "repeated": float(repeated.mean()) if known else np.nan,
                "loops": float(repeated.gt(LOOP).mean()) if known else np.nan,
                "ends": float(facts["ends"].sum(min_count=1)),
            }
        )
    return pd.DataFrame(rows)


def excerpts(manifest: Manifest, documents: Sequence[str], characters: int = 160) -> pd.DataFrame:
    """Return the beginnings of three texts of a source: the one of median perplexity, the highest, the most repetitive.

    The last is left out if no text repeats itself.
    Columns: which, perplexity, repeated, text. Raises InputError unless there is a document for each text.
    """
    if len(documents) != len(manifest.texts) or not len(documents):
        raise InputError(f"excerpts: {len(documents)} documents for {len(manifest.texts)} texts.")
    facts = pd.DataFrame([text.model_dump() for text in manifest.texts]).astype(float)
    order = facts["perplexity"].argsort().to_numpy()
    places = {"median perplexity": order[(len(order) - 1) // 2], "highest perplexity": order[-1]}
    if facts["repeated"].gt(0).any():
        places["most repetition"] = int(facts["repeated"].argmax())
    rows = [
        (which, facts["perplexity"][place], facts["repeated"][place], beginning(documents[place], characters))
        for which, place in places.items()
    ]
    return pd.DataFrame(rows, columns=["which", "perplexity", "repeated", "text"])


def beginning(text: str, characters: int) -> str:
    """Return the first characters of a text on one line, with an ellipsis if there are more.

    >>> beginning("one  two\\nthree", 9)
    'one two t…'
    """
    flat = " ".join(text.split())
    return flat if len(flat) <= characters else flat[:characters] + "…"


def speed_table(file: Path | None = None) -> pd.DataFrame:
    """Return what `benchmarks/synthesis.py --json` measured, one row for each way of writing the texts.

    Columns: work; tokens kept, steps, wall_s, cpu_s, tokens_per_s; speedup over plain `generate`; floor_s, the least
    time that reading and multiplying the weights takes, and over_floor, the multiple of it. `attrs` are the settings.
    Without rows if the file is not there. Raises InputError if the file is something else.
    """
    return benchmark_table(file or root() / SPEED_FILE, SPEED_COLUMNS, "synthesis.py")

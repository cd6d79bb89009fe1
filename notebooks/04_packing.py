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
# # How much of the effect of the text is the way it is cut?
#
# {cite:t}`ji2025beware` find Wikipedia the worst of four calibration texts. But the loaders of their repository do not cut
# all texts alike. All articles of Wikipedia are joined into one stream, and windows cross the borders between articles. C4,
# SlimPajama and DCLM give one window from one document, and only documents longer than a window, 2,048 tokens, are used;
# most documents of C4 are shorter. So the text that stands out is also the only one that was cut another way, and the
# others are a selection.
#
# Here every text is cut in every way. A *cut* is a policy, `packed` (documents joined, windows cross their borders) or
# `document` (one window from one document), with a selection: `all` documents, or `long` ones only. Under `document` a
# document must have the tokens of one window in any case; `long` asks for more. **Damage** is what it is in
# {doc}`01_data_sources`: the mean over held-out texts of ln(perplexity / perplexity of the dense model), in nats per token.
#
# ```{admonition} The rules
# :class: tip
# Rule 1 is decided by the first method; the others stand beside it.
# 1. *Part of the effect of the text is packing* (J14, our own suspicion). Take the standard deviation of the texts' damages
#    when each is cut as the paper's loaders would (Wikipedia: `packed, all`; every other text: `document, long`), minus the
#    mean of that standard deviation under the four equal cuts, for each seed. **Supported** if the 95 % interval of the mean
#    over seeds lies above zero, **not supported** if below, else **inconclusive**. Without Wikipedia among the sources, the
#    first text takes its part.
# 2. *The cut changes the damage.* For the policy (`document` minus `packed`) and for the selection (`long` minus `all`),
#    paired by text and seed and averaged over the other. **Supported** if the 95 % interval of the mean lies wholly beyond
#    0.01 nats per token, up or down; **not supported** if the 90 % interval lies wholly within 0.01 (equivalent); else
#    **inconclusive**.
# 3. *The cut changes what is concluded about the texts.* Some pairs of texts are told apart under `packed, all`, all pairs
#    at once with 95 % confidence. **Supported** for another cut if it tells one of them apart the other way round, or if the
#    texts differ (rule 1 of chapter 1) under one of the two cuts and are alike under the other. **Not supported** if all of
#    these pairs, at least one, keep their order and that rule's verdict is the same; else **inconclusive**.
# ```
#
# Random tokens, if they are among the sources, are left out: they are no text.

# %% [markdown]
# ## Parameters
#
# These are the defaults of a run on a laptop. The figures of the published book come from the profile `published`,
# whose values stand in the cell below this one. To change one: `calib-study run 04_packing -p long_tokens 512`.

# %% tags=["parameters"]
model: str = "smollm2-135m"  # packaged name, directory, GGUF file or hub id
sources: list = ["c4", "wikipedia", "code"]  # calibration texts; see calib-study list sources
methods: list = ["wanda"]  # methods that use calibration text; the first decides rule 1
sparsity: float = 0.5  # fraction of zeros in every block linear
pattern: str = "unstructured"  # or N:M with N of every M weights kept
schedule: str = "dense"  # when statistics are taken: block, sequential or dense
policies: list = ["packed", "document"]  # both ways to cut windows
n_samples: int = 8  # calibration windows
seq_len: int = 128  # tokens in a window
long_tokens: int = 384  # tokens of a document that counts as long, more than a window
n_seeds: int = 3  # draws from each source, at least 3
dtype: str = "float32"  # float32, bfloat16 or auto
device: str = "cpu"  # cpu, cuda, mps
eval_sources: list = ["c4", "code"]  # held-out texts for perplexity
eval_seq_len: int = 128  # tokens in an evaluation window
eval_windows: int = 2  # windows of each held-out text
n_spot_checks: int = 0  # published records to compute again on this machine

# %% [markdown]
# ## Runs
#
# Stored records are read, and missing ones are computed. As many of the published ones as `n_spot_checks` says, chosen at
# random, are computed again on the machine that built this page.

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from calib_study.parameters import check

cfg = check("04_packing", globals())

# %% tags=["hide-input"]
from calib_study import (
    figures,
    frames,
    packing_figures,
    packing_tables,
    schedule_figures,
    schedule_tables,
    study,
    verdicts,
    verification,
)
from calib_study.records import to_frame

records = study.run_grid(cfg.specs(), model=cfg.model, device=cfg.device)
damage = packing_tables.cut_runs(frames.text_runs(to_frame(records)))
texts, first = list(dict.fromkeys(damage["source"])), cfg.methods[0]
joined = packing_tables.packed_text(texts)
assert len(damage) == len(texts) * len(cfg.methods) * len(packing_tables.CUTS) * cfg.n_seeds
assert damage["damage"].gt(0).all(), "a pruned model is better than the dense one"
checked, check_seed = verification.spot_check(records, cfg.n_spot_checks, model=cfg.model, device=cfg.device)
assert checked["agrees"].all(), checked[~checked["agrees"]]
print(f"{len(records)} records, {len(damage)} of them pruned with {len(texts)} texts")
if len(checked):
    print(f"all {len(checked)} numbers computed again agree (sample seed {check_seed})")

# %% [markdown]
# ## What a cut does to the text
#
# The table counts the documents behind one calibration set, on average over draws. Under `document` there are as many as
# windows. Under `packed` there are as many as it takes to fill the windows, so the shorter the documents, the more; and long
# documents mean fewer. {doc}`00_data` counts the documents and tokens of each text.

# %% tags=["hide-input"]
packing_tables.documents_table(records)[list(packing_tables.CUTS)].round(1)

# %% [markdown]
# ## Rule 1: how far the texts lie apart
#
# The upper rows cut all texts alike. The last one mixes two of them as the paper's loaders do. If the cut were of no
# matter, it would look like the others.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean damage of each text minus the mean of all texts, under four equal cuts and, in the last row, as the loaders of the paper cut: one text packed from all documents, the others in single windows from long documents. s.d.: standard deviation between texts, mean over seeds. Lower is better.", "name": "fig-texts-by-cut"}, "image": {"alt": "One panel for each method with a row for each cut; marks of a text are joined by a line; the text below the figure gives best, worst and standard deviation."}}
spreads, means = packing_tables.spread_table(damage), packing_tables.text_means(damage)
packing_figures.fig_texts_by_cut(means, spreads)

# %% tags=["hide-input"]
part = "" if packing_tables.PACKED_TEXT in joined else f" Wikipedia is not among the sources; {joined} takes its part."
said = packing_figures.describe_texts_by_cut(means, spreads)
columns = {"sd": "s.d. between texts", "low": "low", "high": "high", "deficit": f"{joined} minus the others"}
columns |= {"deficit_low": "its low", "deficit_high": "its high"}
display(Markdown(f"*In words.* {said}{part} With 95 % intervals over seeds, and the mean damage and divergence:"))
shown = spreads.set_index(["method", "cut"])[list(columns)].rename(columns=columns)
shown.join(damage.groupby(["method", "cut"])[["damage", "jensen_shannon"]].mean()).round(4)

# %% [markdown]
# ## Rule 2: what the cut does to damage
#
# Each point is a text and a seed: damage with one policy minus that with the other, averaged over the two selections, and
# the same for the selections. The grey band holds the changes that are too small to matter.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What the policy (left) and the selection of long documents (right) change in damage, runs paired by text and seed. Coloured points: single seeds. White marks: mean of all texts with its 95 % interval over draws. Grey band: changes of less than 0.01. Lower is better.", "name": "fig-cut-effects"}, "image": {"alt": "Dot plots, one for the policy and one for the selection, with a row for each text and one for their mean; the text below the figure gives the values."}}
differences = packing_tables.cut_differences(damage)
effects = schedule_tables.change_table(differences, "change")
schedule_figures.fig_schedule_changes(differences, effects, "change", "difference of damage")

# %% tags=["hide-input"]
said = schedule_figures.describe_schedule_changes(effects, "change", "Difference of damage")
display(Markdown(f"*In words.* {said} Text by text:"))
differences.pivot_table(index=["method", "change"], columns="source", values="difference", sort=False).round(3)

# %% [markdown]
# ## Rule 3: the order of the texts
#
# Kendall's τ is 1 if the texts have the same order as under `packed, all`, and −1 if it is reversed. Whether a cut favours
# some texts is their interaction; its share of the variance stands beside those of text, policy and selection.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Shares of the variance of damage with the first method over texts, policies, selections and draws, with 95 % intervals over seeds. A product is an interaction.", "name": "fig-cut-shares"}, "image": {"alt": "Horizontal bars for text, policy, selection, their interactions and the draw; the text below the figure gives the percentages."}}
shares = packing_tables.cut_shares(packing_tables.values_of(damage, first)[1])
figures.fig_variance_shares(shares)

# %% tags=["hide-input"]
order = packing_tables.cut_order_table(damage)
display(Markdown(f"*In words.* {figures.describe_variance_shares(shares)} The order of the texts under each cut:"))
columns = {"best": "best", "worst": "worst", "tau": "τ", "told_apart": "told apart under packed, all"}
columns |= {"kept": "same order here", "reversed": "reversed here", "differ": "texts differ", "verdict": "rule 3"}
order.set_index(["method", "cut"])[list(columns)].rename(columns=columns).round(2)

# %% [markdown]
# ## Verdict

# %% tags=["hide-input"]
judgements = packing_tables.judge(cfg, records)
of_damage = [
    f"{row['change']} {row['mean']:+.3f} **{row['verdict']}**"
    for row in effects[effects["method"] == first].to_dict("records")
]
of_order = [
    f"{row['cut']} **{row['verdict']}**" for row in order[order["method"] == first].to_dict("records") if row["verdict"]
]
tested = (
    f"{cfg.model}, {cfg.sparsity:.0%} {cfg.pattern}, {cfg.n_samples} windows of {cfg.seq_len} tokens, long from "
    f"{cfg.long_tokens} tokens, {len(texts)} texts, {cfg.n_seeds} seeds"
)
Markdown(
    f"{verdicts.judgement_table(judgements)}\n\nRules 2 and 3, for {first}. The cut changes the damage: "
    f"{'; '.join(of_damage)}. It changes the conclusions: {'; '.join(of_order)}. Tested on {tested}."
)

# %% [markdown]
# ## What did not match, and the limits
#
# The paper has no equal cut to compare with. Its numbers are for Wanda on DCLM-7B, from lists in its repository.

# %% tags=["hide-input"]
own = spreads[spreads["method"] == first].set_index("cut")
mixed, alike = own.loc[packing_tables.PAPERS], own.drop(index=packing_tables.PAPERS)
centred = means[(means["method"] == first) & (means["cut"] == packing_tables.PAPERS)].set_index("source")["mean"]
Markdown(
    f"| | the paper | here |\n|---|---|---|\n"
    f"| texts, and what is measured | 4, mean accuracy on seven tasks | {len(texts)}, damage in nats per token |\n"
    f"| text that is packed, and the others | Wikipedia; C4, SlimPajama, DCLM | {joined}; {', '.join(t for t in texts if t != joined)} |\n"
    f"| worst minus best as the paper cuts | 1.86 points; without Wikipedia 0.58 | {centred.max() - centred.min():.3f}; "
    f"without {joined} {centred.drop(joined).max() - centred.drop(joined).min():.3f} |\n"
    f"| {joined} (there: Wikipedia) against the mean of the others | 1.55 points worse | damage "
    f"{mixed['deficit']:+.3f} as the paper cuts, {alike['deficit'].mean():+.3f} cut alike |\n"
    f"| windows | 128 of 2,048 tokens | {cfg.n_samples} of {cfg.seq_len} tokens |"
)

# %% [markdown]
# Why they may differ, and how far this goes:
#
# - **Long is a matter of scale.** The paper's windows have 2,048 tokens, and a document must be longer. Here a window is
#   shorter, and *long* is a few windows, so the selection is milder than theirs.
# - **Other texts.** SlimPajama and DCLM are not packaged with this book. The samples here are small; what is long in them may
#   be of another kind than what is long in the whole corpus.
# - **Windows here never overlap**, and no document is used twice under `document`. The paper's loaders draw with
#   replacement. Between joined documents stands the end-of-text token; theirs puts a space.
# - **Few draws.** The interval of rule 1 is over seeds alone, and three of them leave it wide. The standard deviation
#   between texts has the noise of single draws in it, under every cut.
# - **Scale.** 135 million parameters are a fiftieth of the paper's 7 billion. A larger model makes more of its context, and
#   may mind borders within a window more. The weights are those of an instruction-tuned model, rounded to 4 bits and
#   restored.
# - **The schedule.** All statistics are taken from the dense model by default; {doc}`10_schedules` measures what that
#   changes.

# %% tags=["hide-input"]
environment = records[-1].environment
print(", ".join(f"{name} {version}" for name, version in environment.versions.items()))
print(f"records computed on {sorted({r.environment.processor for r in records})}")

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
# # Does the calibration text matter more, the more is pruned?
#
# {cite:t}`ji2025beware` report that the gap between calibration texts grows with sparsity, from next to nothing below
# 50 % to more than two points of accuracy at 60 %, and with structure: unstructured pruning has the smallest gap, 2:4 the
# largest. Beyond that, a badly chosen text is said to be worse than magnitude pruning {cite:p}`han2015learning`, which
# reads none; and the effect is said to hold across Wanda, DSnoT and OWL. {cite:t}`williams2024impact` add that no source is
# best everywhere.
#
# A *level* is a sparsity and a pattern. One method that reads text is run at all levels, others at some of them, and
# magnitude and a random mask at all. **Damage** is what it is in {doc}`01_data_sources`: the mean over held-out texts of
# ln(perplexity / perplexity of the dense model), in nats per token. The **gap** is the mean damage with the worst text
# minus that with the best.
#
# A trend of the gap cannot be read off the gap. Best minus worst is above zero even if all texts are one, and grows
# with the noise of the draws, which grows with sparsity too. So trends are judged by the **spread**: the standard
# deviation between the texts' means, less what draws add to it. It names no text after seeing the numbers.
#
# ```{admonition} The rules
# :class: tip
# 1. *The gap grows with sparsity* (J1). Take the change of the spread from the lowest unstructured sparsity to the highest.
#    **Supported** if its 95 % interval lies above zero, and that of no step between neighbouring sparsities below. **Not
#    supported** if one of them lies below zero, or the 90 % interval of the whole change within 0.01 nats per token of it
#    on both sides (no growth that matters); else **inconclusive**. The change of the spread *as a share of the mean
#    damage* is shown beside it: it says whether the gap grows faster than the damage itself.
# 2. *The gap grows with structure* (J2). The same, over the patterns of one sparsity: unstructured, 4:8, 2:4. If there are
#    several such sparsities, the claim must hold at each of them.
# 3. *Bad text can be worse than magnitude* (J4). Take each text's damage minus magnitude's, for each method and level, with
#    limits that hold for all of them at once (5 % on each side). **Supported** if one lies wholly above zero, **not
#    supported** if all lie wholly below, else **inconclusive**.
# 4. *The source effect holds across methods* (the first half of J12). At each level at which several methods read text,
#    apply rule 1 of chapter 1 to each method: do the texts differ by more than draws of one text? **Supported** if so for
#    each, **not supported** if for one a difference of 0.01 would have shown and did not, else **inconclusive**.
# 5. *No source is best everywhere* (W2). With each method at each level, some texts may be the best: those that no other is
#    told apart from as better, by 0.01 nats per token or more, with 95 % confidence for all pairs, methods and levels at
#    once. **Supported** if no text is in all of these sets, **not supported** if one is alone in all, else **inconclusive**.
# ```
#
# Random tokens, if they are among the sources, are left out: they are no text.

# %% [markdown]
# ## Parameters
#
# These are the defaults of a run on a laptop. The figures of the published book come from the profile `published`,
# whose values stand in the cell below this one. To change one: `calib-study run 02_sparsity_scaling -p n_samples 16`.

# %% tags=["parameters"]
model: str = "smollm2-135m"  # packaged name, directory, GGUF file or hub id
sources: list = ["c4", "wikipedia", "code"]  # calibration texts; see calib-study list sources
methods: list = ["magnitude", "random", "wanda", "sparsegpt"]  # the first that reads text runs at all levels
sparsities: list = [0.5, 0.7]  # unstructured, at least two
patterns: list = ["2:4"]  # N:M with N of every M weights kept; quote them in YAML
compared_sparsities: list = [0.5]  # of the sparsities, those at which the other methods run too
compared_patterns: list = []  # of the patterns, those at which the other methods run too
schedule: str = "dense"  # when statistics are taken: block, sequential or dense
policy: str = "packed"  # packed (documents joined) or document (one window from one document)
n_samples: int = 8  # calibration windows
seq_len: int = 128  # tokens in a window
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

cfg = check("02_sparsity_scaling", globals())

# %% tags=["hide-input"]
from calib_study import (
    figure_style,
    frames,
    scaling_figures,
    scaling_levels,
    scaling_tables,
    study,
    verdicts,
    verification,
)
from calib_study.records import to_frame

records = study.run_grid(cfg.specs(), model=cfg.model, device=cfg.device)
runs = frames.scored_runs(to_frame(records))
first = cfg.first_reader
gaps = scaling_levels.gap_table(runs)
assert runs["damage"].gt(0).all(), "a pruned model is better than the dense one"
assert (gaps["n_seeds"] == cfg.n_seeds).all(), "a method lacks some draws at a level"
checked, check_seed = verification.spot_check(records, cfg.n_spot_checks, model=cfg.model, device=cfg.device)
assert checked["agrees"].all(), checked[~checked["agrees"]]
print(f"{len(records)} records; {len(gaps)} cells of a method that reads text and a level")
if len(checked):
    print(f"all {len(checked)} numbers computed again agree (sample seed {check_seed})")

# %% [markdown]
# ## Damage, level by level
#
# First the scale of things. Damage grows by an order of magnitude or more with sparsity, so its axis is logarithmic. As
# damage is itself a logarithm, 1 nat per token more means a perplexity 2.7 times as high.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean damage with each calibration text at each level, on a logarithmic axis, with magnitude pruning and a random mask for scale. Left: unstructured, by sparsity. Right, if there are patterns: at one sparsity, from the freest pattern to the most bound.", "name": "fig-damage-by-level"}, "image": {"alt": "Line plots of damage against sparsity and structure, one line for each text and for magnitude and the random mask; the text below the figure gives the values."}}
scaling_figures.fig_damage_by_level(runs, first)

# %% tags=["hide-input"]
display(Markdown("*In words.* " + scaling_figures.describe_damage_by_level(runs, first) + " Text by text:"))
labels = [scaling_levels.level_label(*level) for level in scaling_levels.levels_of(runs)]
named = scaling_levels.with_level(runs[runs["source"].notna()])
named.pivot_table(index=["method", "source"], columns="level", values="damage", sort=False)[labels].round(3)

# %% [markdown]
# ## The gap at each level
#
# Grey is what the gap would be at most, in 95 of 100 cases, if all texts were one text and only draws differed. The lower
# row divides everything by the mean damage of the texts at that level. A gap that grows only because everything grows is
# a level line there.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Worst minus best text at each level, in nats per token (above, logarithmic) and as a share of the mean damage of all texts (below). Grey area: 95 % of what it would be if all texts were one. Dotted: pooled standard deviation of single draws of a text. Open marks: without the worst text.", "name": "fig-gap-by-level"}, "image": {"alt": "Line plots of the gap and of its share of the damage, against sparsity and structure; the text below the figure gives the values."}}
scaling_figures.fig_gap_by_level(gaps, first)

# %% tags=["hide-input"]
divergence = scaling_levels.gap_table(runs, "jensen_shannon")
shown = scaling_levels.with_level(gaps)
shown[["divergence gap", "its null_q95", "its share"]] = divergence[["gap", "null_q95", "share"]]
display(Markdown("*In words.* " + scaling_figures.describe_gap_by_level(gaps, first) + " By divergence, too:"))
columns = ["gap", "null_q95", "p_value", "relative", "spread", "share", "divergence gap", "its null_q95", "its share"]
shown.set_index(["method", "level"])[columns].round(4)

# %% [markdown]
# In the table, *relative* is the gap in standard deviations of draws, and *share* its share of the mean damage. The last
# columns are the same for the Jensen-Shannon divergence from the dense model, which, unlike damage, cannot exceed ln 2.
#
# ## Rules 1 and 2: does the spread grow?
#
# Every draw has the same windows at every level, so one seed at a time is left out of all levels at once: the jackknife.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Change of the spread of the texts (the standard deviation between their means, less what draws add) from level to level, with its 95 % interval over draws. Filled: from the first level to the last. Left: in nats per token; grey, changes of less than 0.01. Right: of the spread as a share of the mean damage.", "name": "fig-spread-growth"}, "image": {"alt": "Two dot plots with intervals, a row for each step from one level to another; the text below the figure gives the values."}}
growth = scaling_levels.growth_table(runs, first)
scaling_figures.fig_spread_growth(growth)

# %% tags=["hide-input"]
Markdown("*In words.* " + scaling_figures.describe_spread_growth(growth))

# %% [markdown]
# ## Rule 3: texts against magnitude
#
# Magnitude reads no text and has no draws: it is one number for each level. The random mask is drawn anew with each seed.
# It is the floor under all methods, and not what the rule compares with.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean damage with each text, in multiples of the damage of magnitude pruning at that level, for each method and level. Right of the line: worse than magnitude. Bars: the random mask. Logarithmic axis; lower is better.", "name": "fig-against-magnitude"}, "image": {"alt": "Dot plot with a row for each method and level, a mark for each text, and a line at magnitude; the text below the figure gives the worst text of each row."}}
against = scaling_tables.magnitude_table(runs)
scaling_figures.fig_against_magnitude(runs, against) if len(against) else None

# %% tags=["hide-input"]
columns = ["worst", "mean", "magnitude", "difference", "low", "high", "random", "from_random"]
if len(against):
    words = "*In words.* " + scaling_figures.describe_against_magnitude(against)
    display(Markdown(f"{words} In nats per token; limits hold for all rows and texts at once:"))
scaling_levels.with_level(against).set_index(["method", "level"])[columns].round(3)

# %% [markdown]
# The last column is the difference from the random mask, of the text that comes nearest to it, paired by seed.
#
# ## Rule 4: other methods
#
# The gap of each method beside what draws alone would make of it. And the order of the texts: if methods agree on it, the
# rank correlation of two methods, on different draws, is as high as that of one method with itself.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Worst minus best text with each method that reads text, at the levels that all of them share. Grey bars: 95 % of what it would be if all texts were one.", "name": "fig-gap-by-method"}, "image": {"alt": "Dot plots, one for each level, with a row for each method; the text below the figure gives the values."}}
shared = scaling_levels.compared(gaps)
agreement = scaling_tables.agreement_table(runs)
scaling_figures.fig_gap_by_method(shared) if len(shared) else None

# %% tags=["hide-input"]
if len(shared):
    display(Markdown("*In words.* " + scaling_figures.describe_gap_by_method(shared, agreement)))
agreement.set_index(["over", "at"]).round(3)

# %% [markdown]
# The table has Kendall's *W*, 1 if all orders are the same, for the methods at a level and for the levels of a method; and
# the rank correlations on different draws, *between* two of them and *within* one.
#
# ## Rule 5: is one text best everywhere?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean damage of each text minus the mean of all texts, in standard deviations between them, with each method at each level. Filled: may be the best there. Open: another text is told apart as better. Lines that cross are texts that change places. Lower is better.", "name": "fig-text-places"}, "image": {"alt": "Dot plot with a row for each method and level; marks of a text are joined by a line; the text below the figure names the best and the worst texts."}}
places = scaling_tables.place_table(runs)
scaling_figures.fig_text_places(places)

# %% tags=["hide-input"]
names, _ = scaling_tables.best_everywhere(places)
everywhere = f"May be the best everywhere: {', '.join(names) or 'none'}."
Markdown(f"*In words.* {scaling_figures.describe_text_places(places)} {everywhere}")

# %% [markdown]
# ## Verdict

# %% tags=["hide-input"]
levels = ", ".join(labels)
tested = f"{cfg.model}, {levels}, {cfg.n_samples} windows of {cfg.seq_len} tokens, {cfg.n_seeds} seeds"
Markdown(verdicts.judgement_table(scaling_tables.judge(cfg, records)) + f"\n\nTested on {tested}.")

# %% [markdown]
# ## What did not match, and the limits
#
# The tables of {cite:t}`ji2025beware` were not at hand. Its numbers are those that summaries of it give, and the results of
# single draws in the plot scripts of its repository, in points of mean accuracy on seven tasks, for DCLM-7B.

# %% tags=["hide-input"]
rows = figure_style.rows_of(scaling_levels.with_level(gaps))
of_first = [row for row in rows if row["method"] == first]
said = ", ".join(f"{row['gap']:.3f} at {row['level']}" for row in of_first)
shares = ", ".join(f"{100 * row['share']:.1f} % at {row['level']}" for row in of_first)
worse = int((against["verdict"] == "supported").sum())
others = figure_style.rows_of(scaling_levels.with_level(shared))
ranges = ", ".join(f"{figure_style.method_label(row['method'])} {row['gap']:.3f} at {row['level']}" for row in others)
Markdown(
    f"| | the paper | here |\n|---|---|---|\n"
    f"| gap by level | below 0.1 points under 50 %, 0.5 at 50 %, 2.3 at 60 % | {said} (nats per token) |\n"
    f"| its share of the damage | not reported | {shares} |\n"
    f"| gap by structure | unstructured < 4:8 < 2:4 | as above |\n"
    f"| texts worse than magnitude | Wikipedia, by one figure | in {worse} of {len(against)} cells of method and level |\n"
    f"| gap by method | Wanda 1.9, DSnoT 1.8 points at 60 % | {ranges or 'one method only'} |\n"
    f"| calibration set | 128 windows of 2,048 tokens, 20 seeds | {cfg.n_samples} of {cfg.seq_len}, {cfg.n_seeds} seeds |"
)

# %% [markdown]
# Why they may differ:
#
# - **Scale.** 135 million parameters are fewer than a fiftieth of the paper's. A small model has less to spare: it is
#   damaged at sparsities that leave the larger one almost as it was, so that one level is not the same thing in both. The
#   weights are those of an instruction-tuned model, rounded to 4 bits and restored.
# - **Points and nats.** Accuracy cannot fall below chance, and hardly moves while damage is small. A gap in accuracy
#   can grow with sparsity because the measure wakes up. {doc}`11_measuring` compares the two.
# - **Damage as the unit.** The share of the mean damage is one way to ask whether the gap grows faster than the damage. It
#   takes damage to be the right scale; the divergence in the table is another, and is bounded.
# - **Few draws.** With three seeds the interval of a change of the spread is wide. In simulations it covers 92 to 97 % at a
#   nominal 95 %. The standard deviation between texts of each single draw would have given narrower ones, but takes
#   growing noise of draws for a growing gap.
# - **The mix of held-out texts.** Text of a held-out kind is favoured as calibration text ({doc}`01_data_sources`). Another
#   mix could have another best text; rule 5 varies methods and levels only.
# - **Pooled noise.** Rules 3, 4 and 5 take the spread over draws to be the same for all texts of a method at a level.
# - **Schedule.** `dense` takes all statistics from the dense model, where the papers' code takes them block by block;
#   {doc}`10_schedules` measures what that changes.

# %% tags=["hide-input"]
environment = records[-1].environment
print(", ".join(f"{name} {version}" for name, version in environment.versions.items()))
print(f"records computed on {sorted({r.environment.processor for r in records})}")

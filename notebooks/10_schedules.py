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
# # Does it matter when the statistics are taken?
#
# A method that reads text needs statistics of each layer's input. The released code of Wanda {cite:p}`sun2024wanda` and
# of SparseGPT {cite:p}`frantar2023sparsegpt` takes them block by block, and so does chapter 1: the blocks before are
# pruned already, the layers before in the same block are not, and every block is passed twice. This is the schedule
# `block`. Two others need one pass ({numref}`tab-schedules`): `sequential` takes the statistics of a layer when all
# layers before it are pruned, `dense` takes all statistics from the dense model. If they lead to the same results, every
# study of calibration text could be done at a fraction of the cost; if they lead to other conclusions, a study holds
# for its schedule only.
#
# The same texts, draws and methods are run under each schedule. **Damage** is what it is in {doc}`01_data_sources`: the
# mean over held-out texts of ln(perplexity / perplexity of the dense model), in nats per token. `block` is the reference.
#
# ```{admonition} The rules
# :class: tip
# For each method and each schedule other than `block`:
# 1. *The schedule changes the damage.* Take the damage minus that of the same method, text and draw under `block`.
#    **Supported** if the 95 % interval of its mean lies wholly beyond 0.01 nats per token, up or down; **not
#    supported** if the 90 % interval lies wholly within 0.01 (the damages are equivalent); else **inconclusive**.
# 2. *The schedule changes what is concluded about the texts.* Some pairs of texts are told apart under `block`, all
#    pairs at once with 95 % confidence. **Supported** if one of them is told apart the other way round, or if the texts
#    differ (rule 1 of chapter 1) under one of the two schedules and are alike under the other. **Not supported** if all
#    of these pairs, at least one, keep their order and that rule's verdict is the same; else **inconclusive**.
# 3. *The schedule moves the mask less than another draw of the same text does.* Take the share of weights on which the
#    masks of two draws differ, minus the share on which the masks of the two schedules differ, for each text.
#    **Supported** if the 95 % interval of the mean lies above zero, **not supported** if below, else **inconclusive**.
# ```
#
# Random tokens, if they are among the sources, are left out: they are no text.

# %% [markdown]
# ## Parameters
#
# These are the defaults of a run on a laptop. The figures of the published book come from the profile `published`,
# whose values stand in the cell below this one. To change one: `calib-study run 10_schedules -p sparsity 0.6`.

# %% tags=["parameters"]
model: str = "smollm2-135m"  # packaged name, directory, GGUF file or hub id
sources: list = ["c4", "wikipedia", "code"]  # calibration texts; see calib-study list sources
methods: list = ["wanda"]  # methods that use calibration text; wanda+owl adds OWL
schedules: list = ["block", "sequential", "dense"]  # when statistics are taken; block, the reference, comes first
sparsity: float = 0.5  # fraction of zeros in every block linear
pattern: str = "unstructured"  # or N:M with N of every M weights kept
policy: str = "packed"  # packed (documents joined) or document (one window from one document)
n_samples: int = 8  # calibration windows
seq_len: int = 128  # tokens in a window
n_seeds: int = 3  # draws from each source, at least 3
dtype: str = "float32"  # float32, bfloat16 or auto
device: str = "cpu"  # cpu, cuda, mps
eval_sources: list = ["c4", "code"]  # held-out texts for perplexity
eval_seq_len: int = 256  # tokens in an evaluation window
eval_windows: int = 4  # windows of each held-out text
n_spot_checks: int = 0  # published records to compute again on this machine

# %% [markdown]
# ## Runs
#
# Stored records are read, and missing ones are computed. A run that another chapter has too, down to the held-out windows
# that score it, is the same record. As many of the published ones as `n_spot_checks` says, chosen at random, are computed
# again on the machine that built this page.

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from calib_study.parameters import check

cfg = check("10_schedules", globals())

# %% tags=["hide-input"]
from calib_study import frames, mask_tables, schedule_figures, schedule_tables, study, verification
from calib_study.mask_samples import MaskSample
from calib_study.records import Store, to_frame

records = study.run_grid(cfg.specs(), model=cfg.model, device=cfg.device)
runs = frames.damage_table(to_frame(records))
texts = [name for name in cfg.sources if name != frames.FLOOR_SOURCE]
damage = runs[runs["source"].isin(texts)]
assert len(damage) == len(texts) * len(cfg.methods) * len(cfg.schedules) * cfg.n_seeds
assert damage["damage"].gt(0).all(), "a pruned model is better than the dense one"
checked, check_seed = verification.spot_check(records, cfg.n_spot_checks, model=cfg.model, device=cfg.device)
assert checked["agrees"].all(), checked[~checked["agrees"]]
print(f"{len(records)} records, {len(damage)} of them pruned with {len(texts)} texts")
if len(checked):
    print(f"all {len(checked)} numbers computed again agree (sample seed {check_seed})")
    display(checked[checked["quantity"].str.startswith("perplexity")].set_index("run"))

# %% [markdown]
# ## Rule 1: damage
#
# Two runs that are compared share method, text and windows, so the difference between them is due to the schedule alone.
# The grey band holds the changes that are too small to matter: 0.01 nats per token up or down, one per cent of perplexity.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Damage minus the damage of the same method, text and draw under the schedule block. Coloured points: single seeds. White marks: mean of all texts with its 95 % interval over draws. Grey band: changes of less than 0.01. Lower is better.", "name": "fig-schedule-changes"}, "image": {"alt": "Dot plots, one for each method and schedule, with a row for each text and one for their mean; the text below the figure gives the values."}}
differences = schedule_tables.schedule_differences(damage)
changes = schedule_tables.change_table(differences)
schedule_figures.fig_schedule_changes(differences, changes)

# %% tags=["hide-input"]
by_text = differences.pivot_table(index=["method", "schedule"], columns="source", values="difference", sort=False)
display(Markdown("*In words.* " + schedule_figures.describe_schedule_changes(changes) + " The means text by text:"))
by_text.round(3)

# %% [markdown]
# ## Rule 2: conclusions about the texts
#
# The level of damage may move while the differences between texts stay. So each text's mean is shown against the mean of
# all texts under that schedule. A grey bar is as long as the range could be if all texts were one and only draws
# differed; lines that cross are texts that change places. Kendall's τ counts such changes: 1 if there are none, −1 if
# the order is reversed.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean damage of each text minus the mean of all texts, under each schedule. Grey bars: 95 % quantile of the range if all texts were one. Range: best to worst text; τ: Kendall's correlation with the order under block. Lower is better.", "name": "fig-order-by-schedule"}, "image": {"alt": "One panel for each method with a row for each schedule; marks of a text are joined by a line; the text below the figure gives best, worst, range and correlation."}}
order = schedule_tables.order_table(damage)
means = frames.interval_table(damage, ["method", "schedule", "source"], "damage")
schedule_figures.fig_order_by_schedule(means, order)

# %% tags=["hide-input"]
display(Markdown("*In words.* " + schedule_figures.describe_order_by_schedule(order) + " Pairs of texts told apart:"))
columns = {
    "told_apart": "under block",
    "kept": "same order here",
    "reversed": "reversed here",
    "differ": "texts differ",
}
order.set_index(["method", "schedule"])[list(columns)].rename(columns=columns)

# %% [markdown]
# ## Rule 3: masks
#
# A sample of each mask is kept beside its record: some weights of every layer, the same ones in every run. Two runs that
# differ in one thing only show how much that thing moves the mask. So the schedule stands here beside the draw, the text
# and the method.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of weights that are removed in only one of two models, for pairs of runs that differ in one thing only: the schedule, the draw, the text or the method. Points: pairs of runs. Marks: means.", "name": "fig-mask-disagreement"}, "image": {"alt": "Dot plot with a row for each kind of pair and method; the text below the figure gives the means."}}
of_texts = [record for record in records if record.run_id in set(damage["run_id"])]
samples = {r.run_id: MaskSample.of_arrays(kept) for r in of_texts if (kept := Store.default().arrays(r))}
masks = mask_tables.mask_table(of_texts, samples)
mask_changes = mask_tables.mask_changes(masks, schedule_tables.REFERENCE)
schedule_figures.fig_mask_disagreement(masks) if len(masks) else None

# %% tags=["hide-input"]
in_words = f"*In words.* {schedule_figures.describe_mask_disagreement(masks)} " if len(masks) else ""
Markdown(f"{in_words}A sample of the mask is kept with {len(samples)} of the {len(of_texts)} records.")

# %% [markdown]
# ## Cost
#
# A *forward* is one dense pass of the calibration windows through the blocks, without the output layer: what any method
# must pay that looks at each window once. The *textbook* is a plain program of the same method under `block`, in float32:
# window by window, with full sorts.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Horizontal bars, one for each method and schedule; the text below the figure gives the values."}}
cost = schedule_tables.cost_table()
command = "`calib-study bench prune --json benchmarks/results/prune_cost.json`"
if len(cost):
    display(schedule_figures.fig_prune_cost(cost))
settings = ", ".join(f"{name} {value}" for name, value in cost.attrs.items())
measured = f"Measured by {command} ({settings}). {schedule_figures.describe_prune_cost(cost)}" if len(cost) else ""
Markdown(measured or f"*No measurement is kept with this copy of the book; {command} makes one.*")

# %% [markdown]
# ## Verdict

# %% tags=["hide-input"]
verdict = changes.merge(order, on=["method", "schedule"], suffixes=("_1", "_2"))
verdict = verdict.merge(mask_changes, on=["method", "schedule"], how="left", suffixes=("", "_3"))
lines = [
    f"| {row['method']} | {row['schedule']} | {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]: "
    f"**{row['verdict_1']}** | {row['kept']} of {row['told_apart']} pairs kept, {row['reversed']} reversed: "
    f"**{row['verdict_2']}** | **{row['verdict']}** |"
    for row in verdict.fillna({"verdict": "no masks kept"}).to_dict("records")
]
head = "| method | schedule | changes the damage (nats per token) | changes the conclusions | moves masks less than a draw |"
tested = f"{cfg.model}, {cfg.sparsity:.0%} {cfg.pattern}, {cfg.n_samples} windows of {cfg.seq_len} tokens, {cfg.n_seeds} seeds"
Markdown("\n".join([head, "|---" * 5 + "|", *lines]) + f"\n\nTested on {tested}, {len(texts)} texts.")

# %% [markdown]
# ## What did not match, and the limits
#
# The papers that this book repeats give no figures for such a comparison, as far as we know, so there is none to match.
# The released code of SparseGPT has `sequential` as an option; that of Wanda walks by `block`.
#
# - **Scale.** A schedule decides which errors of earlier layers a layer is told of. These add up with depth and with
#   sparsity; a deeper model, or a higher sparsity, may tell the schedules further apart than this one does.
# - **Few draws.** The interval of rule 1 holds for these texts and for other draws from them. It takes the spread over
#   draws to be the same for all texts, which leaves it more to go by than the draws of one text. Rule 2 does the same.
# - **Inconclusive is not equivalent.** A change whose interval excludes zero, but not by 0.01, is a change; rule 1 leaves
#   open whether it matters. It is also about the mean of the texts: a schedule that helps one text and harms another
#   shows in the table below {numref}`fig-schedule-changes`, and under rule 2.
# - **Masks are not all.** SparseGPT also adjusts the weights that stay, and two models with the same mask can differ in them.
#   The scale of rule 3, another draw, is itself an effect of the size of the calibration set.
# - **Cost** is CPU time on one machine. The schedules differ in what they hold in memory, too: `sequential` keeps all
#   windows inside a block at once.

# %% tags=["hide-input"]
environment = records[-1].environment
print(", ".join(f"{name} {version}" for name, version in environment.versions.items()))
print(f"records computed on {sorted({r.environment.processor for r in records})}")

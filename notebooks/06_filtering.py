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
# # Does it help to drop the texts of highest perplexity?
#
# A model that writes text writes some badly. {cite:t}`ji2025beware` let the model score what it wrote
# ({doc}`05_self_generation`), and drop the fifth of the texts that has the highest perplexity, before the rest calibrates.
#
# A filter changes two things at once: *which* texts are left, and *how many*. So the control drops as many at random, and the
# texts of lowest perplexity are dropped in their turn. **Damage** is what it is in {doc}`01_data_sources`, in nats per token.
#
# ```{admonition} The rule
# :class: tip
# *Dropping the fifth of highest perplexity helps (J9).* Take the damage after that drop (or the share nearest to a fifth)
# minus the damage after dropping as many at random, paired by seed, with the first method. A difference of 0.01 nats per
# token is the smallest that matters. **Supported** if the 95 % interval of the mean lies wholly below −0.01, **not
# supported** if the 90 % interval lies wholly above −0.01 (no gain that matters), else **inconclusive**.
# ```
#
# The random filter of a run is drawn from the run's seed, so its control holds the chance of the drop, too. The spread of
# the differences is taken to be the same for all shares dropped at an end.

# %% [markdown]
# ## Parameters
#
# These are the defaults of a run on a laptop. The figures of the published book come from the profile `published`,
# whose values stand in the cell below this one. To change one: `calib-study run 06_filtering -p scorer gemma3-270m`.
#
# With an empty `scorer` the perplexities are the generator's own, which come with the text. Any other model can score: a
# packaged name, a directory, a GGUF file or a hub id, as wherever a model is named. It must be one that runs here, and
# reads every text once.

# %% tags=["parameters"]
model: str = "smollm2-135m"  # packaged name, directory, GGUF file or hub id
sources: list = ["c4"]  # real texts whose first tokens the model continues; see calib-study list sources
methods: list = ["wanda"]  # methods that use calibration text; the first decides
sparsity: float = 0.5  # fraction of zeros in every block linear
pattern: str = "unstructured"  # or N:M with N of every M weights kept
schedule: str = "dense"  # when statistics are taken: block, sequential or dense
policy: str = "packed"  # packed (documents joined) or document (one window from one document)
n_samples: int = 4  # calibration windows
seq_len: int = 64  # tokens in a window
n_texts: int = 16  # texts that the model writes after each source
new_tokens: int = 64  # tokens that follow the prefix
prefix_len: int = 2  # tokens of real text at the beginning of each, without the start token
temperature: float = 0.6  # logits are divided by it before a token is drawn
top_k: int = 50  # the likeliest tokens that can be drawn; 0 for all
top_p: float = 0.95  # of those, the likeliest that make up this probability; 1 for all
repetition_penalty: float = 1.2  # logits of tokens that the text has already are divided by it
end_of_text: str = "continue"  # when end-of-text is drawn: stop, continue (a new document in the same text) or ban
text_seed: int = 0  # of the random numbers that the texts are drawn with
n_seeds: int = 3  # draws from each text, at least 3
dtype: str = "float32"  # float32, bfloat16 or auto
device: str = "cpu"  # cpu, cuda, mps
eval_sources: list = ["c4", "code"]  # held-out texts for perplexity and divergence
eval_seq_len: int = 128  # tokens in an evaluation window
eval_windows: int = 2  # windows of each held-out text
n_spot_checks: int = 0  # published records to compute again on this machine
drops: list = [20, 40]  # per cent of the texts that a filter drops
ends: list = ["top", "random"]  # which texts: top (highest perplexity), bottom (lowest), random (the control)
scorer: str = ""  # model whose perplexities are cut by; empty for the one that wrote the texts

# %% [markdown]
# ## Texts, filters and runs

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from calib_study.parameters import check

cfg = check("06_filtering", globals())
lines: list = []
written = [job.run(lines.append) for job in cfg.jobs()]
manifests = {job.source: job.run(lines.append) for *_, job in cfg.filters()}

# %% tags=["hide-input"]
import pandas as pd

from calib_study import filter_figures, filter_tables, frames, generated, study, verdicts, verification
from calib_study.records import to_frame

records = study.run_grid(cfg.specs(), model=cfg.model, device=cfg.device)
frame = to_frame(records)
runs = filter_tables.filter_runs(frames.damage_table(frame), cfg)
assert runs["damage"].gt(0).all(), "a pruned model is better than the dense one"
checked, check_seed = verification.spot_check(records, cfg.n_spot_checks, model=cfg.model, device=cfg.device)
assert checked["agrees"].all(), checked[~checked["agrees"]]
print(f"{len(records)} records; {len(written)} sources that the model wrote, {len(manifests)} filters")
if len(checked):
    print(f"all {len(checked)} numbers computed again agree (sample seed {check_seed})")
    display(checked[checked["quantity"].str.startswith("perplexity")].set_index("run"))

# %% [markdown]
# ## Where the filters cut

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Perplexities of the texts that the model wrote (logarithmic axis), and where each filter cuts. Percentages: texts dropped.", "name": "fig-perplexity-cuts"}, "image": {"alt": "Histogram of perplexities with the cuts as vertical lines; the text below the figure gives the range and the cuts."}}
filters, texts, made = filter_tables.manifests_by_filter(cfg, manifests), {}, {}
for source, job in zip(cfg.sources, cfg.jobs(), strict=True):
    parent, documents = generated.read_generated(generated.generated_folder(job.source))
    texts[source] = filter_tables.scored_texts(parent, documents, filters[source])
    made[source] = filter_tables.composition_table(texts[source], filters[source])
filter_figures.fig_perplexity_cuts(texts, made)

# %% tags=["hide-input"]
Markdown("*In words.* " + filter_figures.describe_perplexity_cuts(texts, made))

# %% [markdown]
# ## What they remove
#
# Perplexity is a mean over tokens that the model chose itself. So a text of high perplexity is one in which unlikely tokens were
# drawn, and one of low perplexity may be a loop. The share of 4-grams of tokens that a text has had before tells which.

# %% tags=["hide-input"]
composition = pd.concat(made, names=["after"]).reset_index("after").set_index(["after", "end", "drop"])
names = [name.replace("_", ", ") for name in composition.columns]
composition = composition.rename(columns=dict(zip(composition.columns, names, strict=True)))
shares = {name: "{:.1%}" for name in names if name.startswith("repeated")}
composition.style.format({"removed": "{:.0f}", **shares}, precision=2, na_rep="").format_index("{:g}", level="drop")

# %% tags=["hide-input"]
for source in cfg.sources:
    display(Markdown(f"Texts after **{source}** that each filter removes, of highest and of lowest perplexity:"))
    removed = filter_tables.removed_table(texts[source], filters[source]).set_index(["end", "drop", "which"])
    shown = removed.style.format({"perplexity": "{:.2f}", "repeated": "{:.1%}"}, escape="html")
    display(shown.format_index("{:g}", level="drop"))

# %% [markdown]
# ## The rule: damage
#
# On the left the damage with what is left, on the right its difference from dropping as many at random.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: damage by share of texts dropped; points are single draws, lines join means. Right: difference from dropping as many at random, with 95 % intervals; grey band: differences of less than 0.01. First method, mean of all texts. Lower is better.", "name": "fig-filter-damage"}, "image": {"alt": "Two plots against the share dropped, one line for each end; the text below the figure gives the values."}}
effects = filter_tables.effect_table(runs)
filter_figures.fig_filter_damage(runs, effects, cfg.methods[0])

# %% tags=["hide-input"]
display(Markdown("*In words.* " + filter_figures.describe_filter_damage(runs, effects, cfg.methods[0])))
divergence = frame[frame["metric"] == "jensen_shannon"].groupby("run_id", sort=False)["value"].mean()
diverging = frames.damage_table(frame).assign(damage=lambda table: table["run_id"].map(divergence))
beside = filter_tables.effect_table(filter_tables.filter_runs(diverging, cfg))
shown = effects.assign(divergence=beside["mean"]).set_index(["method", "end", "drop"])
shown[["mean", "low", "high", "from_whole", "divergence", "verdict"]].rename(
    columns={"from_whole": "minus whole"}
).round(4)

# %% [markdown]
# The column `divergence` is the same difference from random drops in Jensen-Shannon divergence from the dense model; `minus
# whole` is the damage minus that with all texts, in which fewer texts are mixed with other texts.

# %% [markdown]
# ## Verdict

# %% tags=["hide-input"]
tested = f"{cfg.model}, {cfg.sparsity:.0%} {cfg.pattern}, {cfg.n_samples} windows of {cfg.seq_len} tokens, {cfg.n_seeds} seeds"
Markdown(
    verdicts.judgement_table(filter_tables.judge(cfg, records))
    + f"\n\nTested on {tested}; {cfg.n_texts} texts of {cfg.new_tokens} new tokens after {', '.join(cfg.sources)}, scored by "
    f"{cfg.scorer or 'the model itself'}."
)

# %% [markdown]
# ## What did not match, and the limits
#
# The paper has an ablation of this filter; its numbers were not at hand.

# %% tags=["hide-input"]
effect = effects[(effects["end"] == "top") & (effects["method"] == cfg.methods[0])]
nearest = effect.iloc[(effect["drop"] - filter_tables.PAPER_DROP).abs().argsort()[:1]]
ours = ", ".join(f"{row.drop:g} %: {row.mean:+.3f} nats per token" for row in nearest.itertuples(index=False))
left = min(manifest.counts["kept"] for manifest in manifests.values())
Markdown(
    f"| | the paper | here |\n|---|---|---|\n"
    f"| effect of the filter | no number at hand | {ours or 'not run'}, against random drops |\n"
    f"| dropped | the 20 % of highest perplexity | {', '.join(f'{drop:g}' for drop in cfg.drops)} % at {', '.join(cfg.ends)} |\n"
    f"| texts | 5,000, of which 4,000 are left | {cfg.n_texts}, of which at least {left} are left |\n"
    f"| control | none in the released code | as many dropped at random |"
)

# %% [markdown]
# - **Scale.** The model has a fiftieth of the parameters of the paper's. A weaker writer may have more to filter, or a weaker
#   judge less to filter by: the same model writes and scores.
# - **Which model scored** in the paper cannot be settled from its code. With `scorer` any other can.
# - **A small pool.** What a filter leaves is smaller than the pool, so the draws of different seeds have more in common the more
#   is dropped. That makes the spread after `top` and `bottom` too small for other texts written in the same way; the
#   random filter, another for each seed, has it less. The verdict is about these texts.
# - **A share, not a level.** A filter that drops a fifth drops good texts if all are good. How far the tail reaches
#   ({numref}`fig-perplexity-cuts`) decides what there is to gain.
# - **Schedule.** Statistics may come from the dense model (`dense`), unlike the paper's; {doc}`10_schedules` measures what
#   that changes.

# %% tags=["hide-input"]
environment = records[-1].environment
print(", ".join(f"{name} {version}" for name, version in environment.versions.items()))
print(f"records computed on {sorted({r.environment.processor for r in records})}")

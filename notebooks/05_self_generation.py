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
# # Is text that the model wrote itself as good as real text?
#
# What a model was trained on is seldom public. {cite:t}`ji2025beware` argue that text like the training data calibrates
# best, and that the model can write such text itself: it continues the first tokens of real documents. They report gains of
# up to 2.68 % in mean accuracy, with Wanda, DSnoT and OWL. {cite:t}`shin2024rethinking` add a model's own text to real text.
#
# Here the dense model writes text after the first tokens of several real texts. This **own text** calibrates in the place
# of the real one: same packing, same precision, same number of windows and draws. **Damage** is what it is in
# {doc}`01_data_sources`: the mean over held-out texts of ln(perplexity / perplexity of the dense model), in nats per token.
#
# ```{admonition} The rules
# :class: tip
# A difference of 0.01 nats per token is the smallest that matters. The first method decides rules 1, 3 and 4.
# 1. *Own text is at least as good as real text (J8).* Take the mean damage of the own texts minus that of the real texts.
#    **Supported** if its 95 % interval lies wholly below +0.01, **not supported** if wholly above +0.01, else
#    **inconclusive**. The difference from the best real text, and from the prefix source of each own text, is shown beside
#    it, and so are other measures; they do not decide.
# 2. *That holds for each method (J12).* **Supported** if rule 1 is for every method, **not supported** if for one it is
#    not, else **inconclusive**.
# 3. *A short prefix is enough (J10).* Take the damage after each longer prefix minus that after the chosen one.
#    **Supported** if for every longer prefix the 90 % interval lies wholly above −0.01 (no gain that matters), **not
#    supported** if for one the 95 % interval lies wholly below −0.01, else **inconclusive**.
# 4. *Own text added to real text lowers the damage (S5).* Take the damage with real text and as much own text, minus that
#    with the real text alone. **Supported** if its 95 % interval lies wholly below −0.01, **not supported** if its 90 %
#    interval lies wholly above, else **inconclusive**. The control is as much more real text; it does not decide.
# ```
#
# Random tokens, if they are among the sources, are left out: they are no text.

# %% [markdown]
# ## Parameters
#
# These are the defaults of a run on a laptop. The figures of the published book come from the profile `published`,
# whose values stand in the cell below this one. To change one: `calib-study run 05_self_generation -p prefix_len 4`.

# %% tags=["parameters"]
model: str = "smollm2-135m"  # packaged name, directory, GGUF file or hub id
sources: list = ["c4", "code"]  # real calibration texts; see calib-study list sources
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
tasks: list = ["piqa"]  # see calib-study list tasks
task_limit: int = 10  # items of each task, the same for every run; None for all
prefix_sources: list = ["c4"]  # of the sources, those whose first tokens the model continues
prefix_lens: list = [0, 8]  # other lengths of prefix, all after the first prefix source
added_sources: list = ["c4"]  # of the prefix sources, those that own text is added to

# %% [markdown]
# ## Texts and runs
#
# First the model writes its texts; a source that was written already is found by its request. Then the runs are read, or
# computed where a record is missing.

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from calib_study.parameters import check

cfg = check("05_self_generation", globals())
lines: list = []
manifests = {job.source: job.run(lines.append) for job in cfg.jobs()}

# %% tags=["hide-input"]
from calib_study import (
    figure_style,
    frames,
    generated,
    measures,
    own_text_facts,
    own_text_figures,
    own_text_tables,
    study,
    verdicts,
    verification,
)
from calib_study.records import to_frame

records = study.run_grid(cfg.specs(), model=cfg.model, device=cfg.device)
frame = to_frame(records)
damage = frames.damage_table(frame)
assert damage["damage"].gt(0).all(), "a pruned model is better than the dense one"
labels, real, own = own_text_tables.labels(cfg), own_text_tables.real_texts(cfg), own_text_tables.own_texts(cfg)
checked, check_seed = verification.spot_check(records, cfg.n_spot_checks, model=cfg.model, device=cfg.device)
assert checked["agrees"].all(), checked[~checked["agrees"]]
print(f"{len(records)} records; {len(manifests)} sources written by the model, {len(real)} real ones")
if len(checked):
    print(f"all {len(checked)} numbers computed again agree (sample seed {check_seed})")
    display(checked[checked["quantity"].str.startswith("perplexity")].set_index("run"))

# %% [markdown]
# ## What the model wrote
#
# Before its use, the text itself. The perplexity of a text is the model's own, at temperature 1, prefix included. A 4-gram
# of tokens counts as repeated if the same text has had it before; a text with more than half of them is called a *loop*.
# `end-of-text` counts how often the model ended a document inside a text.

# %% tags=["hide-input"]
wanted = cfg.n_samples * cfg.seq_len
facts = own_text_facts.text_facts({labels[name]: manifest for name, manifest in manifests.items()}, wanted)
columns = {
    "unusable": "left out",
    "perplexity": "median perplexity",
    "repeated": "repeated 4-grams",
    "ends": "end-of-text",
}
shown = facts.set_index("text").rename(columns={**columns, "drawn": "share in one draw"})
shares = {name: "{:.1%}" for name in ("repeated 4-grams", "loops", "share in one draw")}
shown.style.format({**shares, "tokens": "{:,.0f}", "median perplexity": "{:.2f}", "end-of-text": "{:.0f}"})

# %% tags=["hide-input"]
for name in own:
    manifest, documents = generated.read_generated(generated.generated_folder(name))
    display(Markdown(f"**{labels[name]}**, the first characters of three texts:"))
    examples = own_text_facts.excerpts(manifest, documents, 240).set_index("which")
    display(examples.style.format({"perplexity": "{:.2f}", "repeated": "{:.1%}"}, escape="html"))

# %% [markdown]
# The texts are a finite pool. A calibration set takes the share of it that the last column gives, so the sets of two seeds
# have about that share of their tokens in common, and the spread over seeds is too small: if what a text does were a mean
# over its tokens, the spread between draws would be too small by the square root of one minus the share, and the mean over
# seeds would carry the chance of the pool itself, which no seed shows. Below, intervals are for *these* texts; how much
# wider they would be for other texts written in the same way (by the correction of Nadeau and Bengio, 2003) is said
# beside rule 1.

# %% [markdown]
# ## Rules 1 and 2: own text beside real text

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Damage with each calibration text minus the mean of the real texts, by method. Below the dotted line: own text. Points: single draws. Marks: means with 95 % intervals over draws. Grey band: differences of less than 0.01. Lower is better.", "name": "fig-own-gaps"}, "image": {"alt": "Dot plot with a panel for each method and a row for each real text and each own text; the text below the figure gives the values and ranks."}}
gaps = own_text_tables.gap_table(damage, cfg)
own_text_figures.fig_own_gaps(own_text_tables.run_gaps(damage, cfg), gaps, cfg.own())

# %% tags=["hide-input"]
compared = own_text_tables.comparison_table(damage, cfg)
share = float(facts["drawn"].max())
wider = own_text_tables.comparison_table(damage, cfg, overlap=share).iloc[0]
under = own_text_tables.no_worse(own_text_tables.interval_of(wider))
Markdown(
    f"*In words.* {own_text_figures.describe_own_gaps(gaps)} {own_text_figures.describe_comparison(compared)} A draw takes "
    f"up to {share:.0%} of a pool. For other texts written in the same way the interval of rule 1 would be about "
    f"[{wider['low']:+.3f}, {wider['high']:+.3f}], and its verdict **{under}**."
)

# %% [markdown]
# The same comparisons in other measures: divergence of the predictions from the dense model's, how much less likely the right
# answers to the tasks' items became, and accuracy lost. Negative: own text is better. These intervals hold draws of text,
# not the choice of items; with few items that noise is larger ({doc}`11_measuring`).

# %% tags=["hide-input"]
answers = measures.answers_of(measures.results_by_run(records))
table = measures.measure_table(frame, answers)
every = own_text_tables.comparison_table(table, cfg, ["damage", "jensen_shannon", "answer_loss", "accuracy_loss"])
named = every.assign(measure=every["measure"].map(figure_style.measure_label))
named.set_index(["measure", "method", "against"])[["mean", "low", "high"]].round(4)

# %% [markdown]
# Does it matter what text the model continues? If it did as it does for real text, own texts would lie as far apart as their
# prefix sources.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Damage with real texts and with own texts that continue them, first method. Grey bars: 95 % quantile of the range if all texts of a row were one. Lower is better.", "name": "fig-prefix-sources"}, "image": {"alt": "Two rows of marks, real texts and own texts, joined by prefix source; the text below the figure gives the ranges."}}
by_prefix = own_text_tables.prefix_source_table(damage, cfg)
own_text_figures.fig_prefix_sources(by_prefix, cfg.own()) if len(by_prefix) else None

# %% tags=["hide-input"]
in_words = own_text_figures.describe_prefix_sources(by_prefix) if len(by_prefix) else "Only one prefix source is asked."
Markdown(f"*In words.* {in_words}")

# %% [markdown]
# ## Rule 3: how long a prefix?
#
# With each longer prefix a text holds more real text, and its topic is better settled. Text number i continues the same
# document whatever the length.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Damage with own text by the number of real tokens at its beginning, first method and first prefix source. Points: single draws. Marks: means with 95 % intervals. Grey band: less than 0.01 from the chosen length. Dotted: the prefix source itself. Lower is better.", "name": "fig-prefix-length"}, "image": {"alt": "Line plot of damage against prefix length; the text below the figure gives the values."}}
lengths = own_text_tables.length_table(damage, cfg)
prefix, by_name = cfg.prefix_sources[0], {name: length for length, name in cfg.by_length().items()}
at_size = own_text_tables.at_size(damage[damage["method"] == cfg.methods[0]], cfg.n_samples)
of_lengths = at_size[at_size["source"].isin(by_name)].assign(length=lambda runs: runs["source"].map(by_name))
reference = float(at_size.loc[at_size["source"] == prefix, "damage"].mean())
own_text_figures.fig_prefix_length(of_lengths, lengths, reference, prefix)

# %% tags=["hide-input"]
Markdown(f"*In words.* {own_text_figures.describe_prefix_length(lengths, reference, prefix)}")

# %% [markdown]
# ## Rule 4: own text added to real text
#
# Three sets at each seed: the real windows, the same and as many real ones more, the same and as many of own text.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Damage with real text, with twice as much of it, and with as much own text added, first method. Lines join the three sets of one seed, which share their first half. Large marks: means. Lower is better.", "name": "fig-own-added"}, "image": {"alt": "Dot plot with three rows, points of one seed joined; the text below the figure gives the values."}}
added_runs = own_text_tables.added_runs(damage, cfg)
added = own_text_tables.added_table(added_runs)
own_text_figures.fig_own_added(added_runs) if len(added) else None

# %% tags=["hide-input"]
Markdown(
    f"*In words.* {own_text_figures.describe_own_added(added_runs, added)}" if len(added) else "*Nothing was added.*"
)

# %% [markdown]
# ## Speed of writing
#
# Writing is what own text costs. The *floor* is the greater of two times, both measured on the same machine: to read all
# weights once for each step, and to multiply them with every token. With one text at a time memory sets it; with many, or
# on few cores, computing does, and no engine can then be much faster than a plain one that multiplies as well. The target
# is three times plain `generate`, or within 1.5 times the floor.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Horizontal bars of tokens a second, one for each way of writing; the text below the figure gives the values."}}
speed = own_text_facts.speed_table()
command = "`calib-study bench synthesis --n-texts 64 --new-tokens 128 --json benchmarks/results/synthesis.json`"
if len(speed):
    display(own_text_figures.fig_writing_speed(speed))
settings = ", ".join(
    f"{name} {speed.attrs[name]}" for name in ("n_texts", "new_tokens", "threads") if name in speed.attrs
)
measured = f"Measured by {command} ({settings}). {own_text_figures.describe_writing_speed(speed)}" if len(speed) else ""
Markdown(measured or f"*No measurement is kept with this copy of the book; {command} makes one.*")

# %% [markdown]
# ## Verdict

# %% tags=["hide-input"]
tested = f"{cfg.model}, {cfg.sparsity:.0%} {cfg.pattern}, {cfg.n_samples} windows of {cfg.seq_len} tokens, {cfg.n_seeds} seeds"
Markdown(
    verdicts.judgement_table(own_text_tables.judge(cfg, records))
    + f"\n\nTested on {tested}; {len(real)} real texts ({', '.join(real)}), {len(own)} own texts of {cfg.n_texts} times "
    f"{cfg.new_tokens} new tokens."
)

# %% [markdown]
# ## What did not match, and the limits
#
# The table with the paper's comparison was not at hand; its abstract gives the largest gain, and a review of it notes that own
# text is often second to some real text.

# %% tags=["hide-input"]
points = (
    every[every["measure"] == "accuracy_loss"]
    .set_index(["method", "against"])[["mean"]]
    .mul(-100)["mean"]
    .unstack()
    .round(2)
    + 0
)
first = gaps[(gaps["method"] == cfg.methods[0]) & gaps["own"]]
Markdown(
    f"| | the paper | here |\n|---|---|---|\n"
    f"| accuracy, own minus real text (points) | up to +2.68, over models and methods | "
    f"{points['mean of real texts'].min():+.2f} to {points['mean of real texts'].max():+.2f} by method, against the mean of "
    f"real texts; {points['best real text'].min():+.2f} to {points['best real text'].max():+.2f} against the best |\n"
    f"| rank of own text | often second | {', '.join(map(str, first['rank']))} of {len(real) + len(own)} by damage |\n"
    f"| texts written | 5,000 of up to 2,048 tokens | {cfg.n_texts} of {cfg.new_tokens} tokens after each source |\n"
    f"| prefix | 2 tokens; the start token is one of them in some models | {cfg.prefix_len} after the start token |\n"
    f"| calibration set | 128 windows of 2,048 tokens, 20 seeds, 5 for own text | {cfg.n_samples} windows of {cfg.seq_len} "
    f"tokens, {cfg.n_seeds} seeds for both |"
)

# %% [markdown]
# - **Scale.** 135 million parameters are a fiftieth of the paper's 7 billion. Such a model writes worse text, and may fall
#   into loops that a larger one avoids; the table of what it wrote shows how often. The weights are instruction-tuned,
#   rounded to 4 bits and restored, so what it writes is not a sample of its pretraining data.
# - **The texts are a small pool.** See the share above. The draws of real text overlap less, since their pools are larger.
# - **Which real texts** stand in the mean decides rule 1. A text that calibrates badly makes own text look good; the
#   difference from its own prefix source does not have that problem.
# - **The best real text** is chosen after seeing its damage, which favours it.
# - **Not filtered.** The paper drops the fifth of highest perplexity; {doc}`06_filtering` asks what that does.
# - **Precision.** In the released code real text calibrates in another precision than own text, and each method packs own
#   text its own way. Here all is alike.
# - **Schedule.** Statistics may come from the dense model (`dense`), unlike the paper's; {doc}`10_schedules` measures what
#   that changes.
# - **Few draws.** Intervals take the spread over draws to be the same for all texts of a comparison.

# %% tags=["hide-input"]
environment = records[-1].environment
print(", ".join(f"{name} {version}" for name, version in environment.versions.items()))
print(f"records computed on {sorted({r.environment.processor for r in records})}")

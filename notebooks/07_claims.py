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
# # Which of the papers' claims hold here?
#
# Four papers make the claims that this book is about {cite:p}`ji2025beware,williams2024impact,shin2024rethinking,khanal2024evaluating`.
# This page lists them all: what a paper has for a claim, the rule that decides it here, what was found, and what could not
# be tested and why. The verdicts are those of the chapters, computed again from the same records by the same functions;
# each row leads to the figure that shows it.
#
# ```{admonition} How a verdict comes about
# :class: tip
# 1. The rule stands in the opening of the chapter that decides the claim, in full, and was written before the data were
#    seen. W6 is the exception: its rule stands here only, and chapter 1 has the records.
# 2. A rule gives **supported**, **not supported** or **inconclusive**. That two things are alike takes a test of
#    equivalence; a difference that was not found is not enough.
# 3. A claim that several rules decide has their verdict if they agree, and is **mixed** if they do not.
# 4. **Not computed**: the claim has a rule, but the records of this profile are not all there. **Not tested**: nothing
#    here decides it, for the reason given.
# ```
#
# A verdict is about one model of 135 million parameters. It says whether a claim holds *here*, not whether a paper is
# right.

# %% [markdown]
# ## Parameters
#
# No run is started on this page. To judge the claims by other records: compute the chapters under another profile, then
# `calib-study run 07_claims -p profile laptop`. A profile of your own is a file `notebooks/profiles/SLUG.NAME.yml` for each
# chapter.

# %% tags=["parameters"]
profile: str = "published"  # of which profile the records are: smoke, laptop, published, paper, or your own

# %% [markdown]
# ## Judgements
#
# Every chapter whose records are all there judges its claims.

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from calib_study.parameters import check

cfg = check("07_claims", globals())

# %% tags=["hide-input"]
from calib_study import claims, claims_figures, claims_tables, paper_costs

rows = claims.judged(cfg.profile)
assert all(row.judgements or row.missing or row.claim.untested for row in rows), "a claim has no verdict and no reason"
print(
    f"{len(rows)} claims, {sum(len(row.judgements) for row in rows)} judgements by the records of profile {cfg.profile}"
)
claims_tables.count_table(rows)

# %% [markdown]
# ## All verdicts

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The verdict on each claim. Marks: single judgements, by colour and shape; the word: the verdict on the claim.", "name": "fig-verdicts"}, "image": {"alt": "A row for each claim, with its marks and its verdict as a word; the text below the figure names them all."}}
verdicts = claims_tables.verdict_frame(rows)
claims_figures.fig_verdicts(verdicts, claims_tables.PAPERS)

# %% tags=["hide-input"]
Markdown(f"*In words.* {claims_tables.describe_counts(rows)} {claims_figures.describe_verdicts(verdicts)}")

# %% [markdown]
# ## Ji et al. 2025
#
# {cite:t}`ji2025beware` is the main paper. Its full text could not be had: numbers are from the abstract, from scripts and
# logs in the authors' repository, and from what others write about it, as each row says. J13 and J14 are not claims of the
# paper; they are what its repository suggests.

# %% tags=["hide-input"]
Markdown(claims_tables.claims_table(claims_tables.of_paper(rows, "ji2025beware")))

# %% [markdown]
# ## Williams and Aletras 2024
#
# {cite:t}`williams2024impact` prune and quantise nine models of 6.7 to 33 billion parameters.

# %% tags=["hide-input"]
Markdown(claims_tables.claims_table(claims_tables.of_paper(rows, "williams2024impact")))

# %% [markdown]
# ## Shin et al. 2024
#
# {cite:t}`shin2024rethinking` train the weights that are kept, so that each part of the pruned model gives what the dense
# one gave. That is not done here, except that SparseGPT adjusts weights as it prunes.

# %% tags=["hide-input"]
Markdown(claims_tables.claims_table(claims_tables.of_paper(rows, "shin2024rethinking")))

# %% [markdown]
# ## Khanal and Capone 2024
#
# {cite:t}`khanal2024evaluating` ask which measure shows what pruning does to a model.

# %% tags=["hide-input"]
Markdown(claims_tables.claims_table(claims_tables.of_paper(rows, "khanal2024evaluating")))

# %% [markdown]
# ## What may a reader rely on?
#
# Of the main paper's claims, and of those of the other three, by the verdicts above:

# %% tags=["hide-input"]
main = claims_tables.of_paper(rows, "ji2025beware")
others = [row for row in rows if row not in main]
Markdown(
    f"**Ji et al. 2025.** {claims_tables.describe_counts(main)}\n\n{claims_tables.describe_reliance(main)}\n\n"
    f"**The other papers.** {claims_tables.describe_counts(others)}\n\n{claims_tables.describe_reliance(others)}"
)

# %% [markdown]
# ## What could not be tested
#
# Some claims are not tested at all, others in part only.

# %% tags=["hide-input"]
Markdown(claims_tables.untested_table(rows))

# %% [markdown]
# ## What the papers' scale would cost
#
# Each chapter has a profile `paper`: the main paper's protocol, 128 windows of 2,048 tokens and 20 draws, on a model of 7
# billion parameters. Nothing of it was run. What it asks for follows from its parameters: how many runs of which method,
# and how many tokens they read.

# %% tags=["hide-input"]
plan = paper_costs.plan_table()
display(paper_costs.runs_by_method(plan))
paper_costs.tokens_by_chapter(plan)

# %% [markdown]
# From tokens to hours: an operation count of two for each weight that a token meets (Kaplan et al. 2020, section 2.1), times
# what pruning cost in forwards where it was measured ({doc}`10_schedules`), over a throughput that is assumed.

# %% tags=["hide-input"]
hours = paper_costs.hours_table(plan)
display(Markdown(f"Estimated hours of one GPU. {paper_costs.describe_assumptions()}"))
display(paper_costs.hours_by_model(hours))
Markdown(f"*In words.* {paper_costs.describe_hours(hours)}")

# %% [markdown]
# ## What did not match, and the limits
#
# - **Scale.** One model, a fiftieth of the size of the main paper's smallest, with instruction-tuned weights that were
#   rounded to 4 bits and restored. A claim that is not supported here may hold there, and the other way round.
# - **The measure.** Most rules are decided by damage, the rise of the loss on held-out text; the papers' sentences are mostly
#   about accuracy on tasks. {doc}`11_measuring` shows how far the two agree, and how noisy accuracy is at this size.
# - **Many rules.** Each rule errs in some cases: with some twenty of them at 95 % confidence, one wrong
#   verdict is to be expected. Rules that look at many pairs or cells allow for that within themselves, not across claims.
# - **What the papers have** is known at second hand for several claims, as the tables say. A number that is missing there
#   is one that we could not find.
# - **Statistics of the dense model.** Chapters 2 to 6 take all statistics from the dense model, which {doc}`10_schedules`
#   compares with the papers' way.
# - **Hours** are a rough estimate, perhaps to a factor of three. The share of a GPU's peak that is reached depends on the
#   program. The ratio of pruning to a forward was measured on a CPU and with fewer tokens, where the part of SparseGPT that
#   does not grow with the tokens weighs more. Examples before the questions of MMLU are counted with each question, though
#   several questions can share them.

# %% tags=["hide-input"]
from calib_study import __version__

print(f"calib-study {__version__}; versions of each record's libraries are on the chapters' pages")

"""How much does the choice of calibration text decide what post-training pruning does to a language model?

The package is the small engine behind the book: it draws calibration windows, prunes a model block by block,
evaluates it, and keeps every run as a record. Start reading at `calib_study.study`.
"""

__version__ = "0.1.0"

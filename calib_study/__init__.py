"""How much does the choice of calibration text decide what post-training pruning does to a language model?

The package is the small engine behind the book: it draws calibration windows, prunes a model block by block,
evaluates it, and keeps every run as a record. Start reading at `calib_study.study`.
"""

import os

__version__ = "0.1.0"

# torch's worker threads otherwise spin while they wait for each other. As soon as another program shares the cores,
# spinning threads keep the working ones from running: a small run took 17 s instead of 2 s on a busy 2-core machine.
# The same goes for numpy's threads, which by default spin for 2^26 cycles after each product.
# Both can only be set before the libraries are loaded, hence here; a setting of the user's own is left alone.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

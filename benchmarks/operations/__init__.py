"""What `benchmarks/ops.py` measures: inputs, other ways to the same results, cases, and the page of results."""

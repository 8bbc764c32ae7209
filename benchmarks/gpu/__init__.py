"""The steps of gpu_check.py, what runs and remembers them, and the page that they end in."""

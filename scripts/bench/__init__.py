"""The parts of bench_attribution.py: what is measured, in which process, and how it is printed."""

"""The benchmarks that the field compares by, a module each: see trainer/evaluation/benchmark.py."""

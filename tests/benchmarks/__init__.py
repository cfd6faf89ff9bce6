"""What Raylway costs against what people would write without it; `python -m tests.benchmarks [name …]` prints one table.

A reference runs beside what it is compared with, in turns, and ratios are taken pair by pair: on a shared machine the speed of
everything drifts by more than the differences that matter here.
"""

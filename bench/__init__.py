"""The benchmark: what a sandboxed run costs, beside what people use today, measured in one go on this machine.

Run it by `make bench`. docs/performance.md says what each figure means.
"""

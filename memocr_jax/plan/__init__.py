"""Plans a run for accelerators that this machine does not have: memory, time and cost of its programs.

`chips` has the figures of each chip and `devices` the descriptions that compilers take. `turns` says what a
step is made of, and `programs` makes the run's programs. `compiled` compiles one, `hlo` and `cost` read its
text, and `arithmetic` has formulas where nothing can be compiled. `roofline` gives a program's memory and
time, and `predict` the whole plan.
"""

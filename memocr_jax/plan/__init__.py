"""What a run takes of machines that are not here: its programs compiled for them, and the time they bound.

`chips` (what a chip has), `devices` (descriptions that compilers take), `turns` (what a step is made of),
`programs` (a run's programs), `compiled` (what XLA makes of one), `hlo` and `cost` (read from its text),
`arithmetic` (formulas, where nothing can be compiled), `roofline` (a program's memory and time), `predict`
(all of it: the plan).
"""

"""What a run takes of a machine that is not here: compiled programs, counted work, estimated time and cost.

`chips` (what a chip has), `hlo` (what a compiled program does), `work` (what a step is made of), `programs`
(a run's programs for a topology), `model` (the arithmetic where nothing can be compiled), `plan` (all of it).
"""

"""Used by every room, and importing none.

- `types`: the types that flow through a step; `errors`: mistakes that a user can correct.
- `rng`: named random streams; `metrics`: sums with their denominators; `normalize`: SQuAD's normal form.
- `sharding`: meshes and where arrays live; `processes`: several processes.
- `gpu_memory`: JAX's share of a card.
- `buckets`: the few sizes that lengths are padded to.
- `progress`: the progress bar of every command; `signals`: Ctrl-C and SIGTERM.
"""

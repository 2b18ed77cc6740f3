"""Questions with long documents, from files or from the synthetic world.

- `loader`: the examples of a split from any source; `pipeline`: those of training, made ahead by Grain.
- `sources`: which reader takes which file; `flashrag`, `memagent`, `tfds_sources`: the readers.
- `rows`: descriptions that rows are checked against; `contexts`: long documents from many passages.
- `synthetic`: the invented world; `vocabulary`: its words.
- `prepare`, `prepared`: documents assembled once and kept on disk; `catalog`: sources and licences.
"""

"""The paper's analyses (arXiv 2601.21468, section 5): what memories hold where, and what layout is worth.

- `regions`: a memory's crucial (H1) and detailed (body) text, and how much of each is gold evidence.
- `memories`: final memories with their evidence, read from runs and evaluations.
- `density`, `lengths`: regions over training; `robustness`: evidence as heading or as body text, per budget;
  `case`: one question from memory to answers.
- `files`: JSON, plot and Markdown, as every analysis leaves them.
"""

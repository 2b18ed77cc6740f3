"""The memory agent: it drafts a memory, has it drawn, and reads the page.

- `agent`: the agent itself; `prompts`: every prompt; `cloze`: questions about a memory's own text.
- `answers`: scores of boxed answers; `regions`: which words of a memory are headings.
- `system`: the parts of a run, from its configuration; `open`: a model with its weights, from any directory.
- `memory_agent`: `MemoryAgent`, the agent for one's own documents; `document`: a document and its memory.
"""

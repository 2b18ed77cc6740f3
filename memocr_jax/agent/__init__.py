"""The memory agent: it drafts a memory, has it rendered, and reads the page."""

"""The server's parts: `scheduler` (one thread that owns the engine), `chat` (OpenAI's requests and answers),
`memories` (documents kept between requests), `app` (the routes). `python -m memocr_jax.serve` runs it.
"""

"""The HTTP server that `python -m memocr_jax.serve` runs.

- `app`: the application; `chat_routes`, `memory_routes`: its routes; `requests`: what all routes share.
- `chat`: OpenAI's requests and answers; `memories`: documents kept between requests.
- `scheduler`: the thread that owns the engine; `service`: the state behind the routes; `start`: starts it.
"""

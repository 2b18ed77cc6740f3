"""The check of annotations that the tests run under (tests/conftest.py)."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# An int may stand for a float (PEP 484). beartype refuses Self on methods that a hook decorates one by one.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any})))

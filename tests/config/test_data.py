import dataclasses
import subprocess
import sys

import pytest

from memocr_jax.config.data import DataConfig, SyntheticConfig
from memocr_jax.core.errors import UserError


def test_importing_the_settings_is_light():
    code = (
        "import sys, memocr_jax.config.data; "
        "print([m for m in ('numpy', 'jax', 'grain', 'tokenizers', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_defaults_are_sound():
    DataConfig().check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_tokens": 0}, r"^data\.chunk_tokens is 0; use 1 or more \(the default is 5000\)"),
        ({"max_chunks": -1}, r"^data\.max_chunks is -1; use 0 or more"),
        (
            {"source": "flashrag"},
            r"^data\.path: empty, but data\.source is 'flashrag'; give the file to read",
        ),
        ({"validation_questions": 0}, r"^data\.validation_questions"),
        (
            {"synthetic": SyntheticConfig(facts=1, hops_max=2)},
            r"^data\.synthetic\.facts is 1; use 2 or more",
        ),
        ({"synthetic": SyntheticConfig(hops_min=3, hops_max=2)}, r"^data\.synthetic\.hops_max is 2; use 3"),
        (
            {"synthetic": SyntheticConfig(chunks=9)},
            r"^data\.synthetic\.chunks: 9 chunks need as many sentences",
        ),
        (
            {"synthetic": SyntheticConfig(names=19)},
            r"^data\.synthetic\.names: 19 is too few .* use at least 20",
        ),
        ({"synthetic": SyntheticConfig(values=4)}, r"^data\.synthetic\.values is 4; use 5"),
        ({"synthetic": SyntheticConfig(attributes=9)}, r"^data\.synthetic\.attributes: 9 .* at most 8"),
    ],
)
def test_wrong_values_are_named_with_the_fix(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(DataConfig(), **change).check()

"""Where questions are read from: local files, files on the Hugging Face hub, data sets that TFDS prepared."""

from __future__ import annotations

import re

from memocr_jax.core.errors import UserError
from memocr_jax.data.flashrag import read_flashrag
from memocr_jax.data.rows import Rows
from memocr_jax.data.tfds_sources import PREFIX as TFDS
from memocr_jax.data.tfds_sources import read_tfds

HUB = "hf://"


def read_questions(path: str, strict: bool = True, field: str = "data.path") -> Rows:
    """Questions in FlashRAG's layout, or `tfds://...` (`read_tfds`). `UserError` names `field` or the row."""
    if path.startswith(TFDS):
        return read_tfds(path, strict, field)
    return read_flashrag(local_file(path, field), strict, field)


def local_file(path: str, field: str, endpoint: str | None = None) -> str:
    """`path` itself, or the local copy of `hf://datasets/OWNER/NAME/FILE`, downloaded if there is none yet.

    `endpoint`: address of the hub, if not the public one. `UserError` when it cannot be had.
    """
    if not path.startswith(HUB):
        return path
    match = re.fullmatch(r"hf://datasets/([^/]+/[^/]+)/(.+)", path)
    if not match:
        raise UserError(f"{field}: {path!r} is not of the form hf://datasets/OWNER/NAME/FILE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, file = match.groups()
    try:
        return hf_hub_download(repository, file, repo_type="dataset", endpoint=endpoint)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{field}: cannot download {path!r} ({reason}); download it elsewhere and name the file"
        ) from None

"""Assembled documents on disk: TFDS data sets of array_record shards, read by random access.

`tfds.builder_from_directory(folder)` reads them too; TensorFlow is not needed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from memocr_jax.core.errors import UserError
from memocr_jax.data.contexts import LongDocument
from memocr_jax.data.rows import BadRow, Description, SourceQuestion, checked_json
from render.files import replacing

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

MANIFEST = "manifest.json"
"""Written last: a folder that has it is complete."""


@functools.cache
def features() -> tfds.features.FeaturesDict:
    """The features of a record. Positions are 0-based places of the gold passages in the document."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            "example_id": text(),
            "question": text(),
            "answers": tfds.features.Sequence(text()),
            "evidence": tfds.features.Sequence(text()),
            "document": text(),
            "document_tokens": np.int32,
            "num_passages": np.int32,
            "gold_positions": tfds.features.Sequence(np.int32),
        }
    )


def encode(question: SourceQuestion, document: LongDocument) -> bytes:
    """The record of a question with its document; the same bytes in every process."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = {
        "example_id": question.example_id,
        "question": question.question,
        "answers": list(question.answers),
        "evidence": list(question.evidence),
        "document": document.text,
        "document_tokens": len(document.tokens),
        "num_passages": document.num_passages,
        "gold_positions": list(document.gold_positions),
    }
    serialized = features().serialize_example(features().encode_example(record))
    # TFDS leaves the order of the fields to the process's string hashes.
    return tf_example_pb2.Example.FromString(serialized).SerializeToString(deterministic=True)


def shard_path(folder: Path, name: str, split: str, shard: int, shards: int) -> Path:
    """Where TFDS looks for a shard."""
    return folder / f"{_tfds_name(name)}-{split}.array_record-{shard:05d}-of-{shards:05d}"


def write_shard(path: Path, records: Iterable[bytes]) -> None:
    """Write records so that `path` either holds all of them or does not exist."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with replacing(path) as partial:
        # One record a group: a document is read alone. Zstandard, for text.
        writer = ArrayRecordWriter(str(partial), "group_size:1,zstd:3")
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()


def write_metadata(
    folder: Path,
    name: str,
    split: str,
    shard_lengths: Sequence[int],
    num_bytes: int,
    info: Mapping[str, str],
) -> None:
    """Make a folder of shards a TFDS data set; `info`: description, homepage, citation, license."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=_tfds_name(name), split=split, filetype_suffix="array_record"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=list(shard_lengths),
                num_bytes=num_bytes,
                filename_template=template,
            )
        ],
        check_data=False,  # its check reads through TensorFlow
        **info,
    )


def _tfds_name(name: str) -> str:
    # TFDS refuses names that begin with a digit, and has data sets of these names itself.
    return f"memocr_{name}"


class _Manifest(Description):
    problems: list[str] = Field(default_factory=list)


class PreparedQuestions(Sequence[SourceQuestion]):
    """The questions of a prepared folder; a document is read from disk when its question is asked for."""

    def __init__(self, folder: str, field: str = "data.path"):
        """`field` is the setting that names the folder. `UserError` when nothing finished is there."""
        import tensorflow_datasets as tfds

        if not (Path(folder) / MANIFEST).is_file():
            state = "is unfinished" if Path(folder, "job.json").is_file() else "holds no prepared data"
            raise UserError(
                f"{field}: {folder!r} {state}; run python -m memocr_jax.data prepare --to {folder}"
            )
        try:
            manifest = checked_json(_Manifest, Path(folder, MANIFEST).read_bytes())
        except BadRow as error:
            raise UserError(f"{field}: {folder}/{MANIFEST}: {error}; prepare the folder again") from None
        self.problems: tuple[str, ...] = tuple(manifest.problems)
        """Rows that were left out when the folder was made."""
        builder = tfds.builder_from_directory(folder)
        (split,) = builder.info.splits
        self._records: Sequence[Any] = builder.as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> SourceQuestion:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        record = self._records[index % len(self)]
        return SourceQuestion(
            example_id=record["example_id"].decode(),
            question=record["question"].decode(),
            answers=tuple(answer.decode() for answer in record["answers"]),
            evidence=tuple(sentence.decode() for sentence in record["evidence"]),
            context=record["document"].decode(),
        )

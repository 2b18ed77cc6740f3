import functools
import http.server
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from memocr_jax.config.data import DataConfig, SyntheticConfig
from memocr_jax.core.errors import UserError
from memocr_jax.data.loader import load_examples
from memocr_jax.data.prepare import Job, prepare
from memocr_jax.data.prepared import write_shard
from memocr_jax.data.sources import local_file, read_questions
from memocr_jax.data.synthetic import SyntheticWorld
from memocr_jax.data.tfds_sources import cut_passages
from memocr_jax.models.tokenizer import load_tokenizer


def articles(number):
    """An article of 100 sentences of the synthetic world: question, answer, article, answering sentence."""
    config = SyntheticConfig(
        names=300, facts=100, distractors=0, hops_max=1, chunks=1, attributes=8, values=54
    )
    made = SyntheticWorld(config, 0, "train", 10**6)[number]
    return made.question, made.answer, made.sections[0], made.evidence[0].sentence


def trivia_record(number, **changes):
    question, answer, article, _ = articles(number)
    pages = {"doc_source": ["x", "x"], "filename": ["f", "g"], "title": [f"Page {number}", "Empty"]}
    results = {key: [] for key in ("description", "filename", "rank", "search_context", "title", "url")}
    return {
        "question": question,
        "question_id": f"tqa-{number}",
        "question_source": "",
        "entity_pages": {**pages, "wiki_context": [article, ""]},
        "search_results": results,
        "answer": {
            "aliases": [answer, answer.upper()],
            "normalized_aliases": [answer],
            "matched_wiki_entity_name": "",
            "normalized_matched_wiki_entity_name": "",
            "normalized_value": answer,
            "type": "",
            "value": answer,
        },
        **changes,
    }


def nq_record(number, **changes):
    question, answer, article, _ = articles(number)
    record = {"id": f"nq-{number}", "title": f"Page {number}", "context": article, "question": question}
    return {**record, "answer": answer, "all_answers": [answer], **changes}


@pytest.fixture
def tfds_dir(tmp_path):
    """Write records as TFDS keeps that data set, with the features its own builder declares."""

    def _write(dataset, records):
        builder = tfds.builder(dataset, data_dir=str(tmp_path), try_gcs=False)
        folder, features = builder.data_dir, builder.info.features
        (tmp_path / dataset / str(builder.info.version)).mkdir(parents=True)
        name = dataset.split("/")[0]
        path = (
            tmp_path / dataset / str(builder.info.version) / f"{name}-validation.array_record-00000-of-00001"
        )
        write_shard(path, [features.serialize_example(features.encode_example(record)) for record in records])
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split="validation", filetype_suffix="array_record"
        )
        split = tfds.core.SplitInfo("validation", [len(records)], 0, filename_template=template)
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=features,
            split_infos=[split],
            version=builder.info.version,
            check_data=False,
        )
        return f"tfds://{dataset}:validation?data_dir={tmp_path}"

    return _write


@pytest.mark.parametrize(
    ("dataset", "record", "first"),
    [("trivia_qa/rc", trivia_record, "tqa-0"), ("natural_questions/longt5", nq_record, "nq-0")],
)
def test_original_releases_through_tfds(tfds_dir, dataset, record, first):
    spec = tfds_dir(dataset, [record(number) for number in range(6)])
    rows = read_questions(spec)
    assert len(rows.questions) == 6 and rows.questions[0].example_id == first
    for number, question in enumerate(rows.questions):
        _, answer, article, _ = articles(number)
        texts = [p.text for p in question.paragraphs]
        assert " ".join(texts) == article
        assert all(len(text.split()) <= 100 for text in texts) and len(texts) >= 6
        (gold,) = question.gold
        assert answer in texts[gold] and not any(answer in text for text in texts[:gold])
        assert question.evidence[0] in texts[gold] and answer in question.evidence[0]
        assert question.answers[0] == answer


def test_a_tfds_source_goes_through_loader_and_prepare(tfds_dir, tmp_path):
    spec = tfds_dir("natural_questions/longt5", [nq_record(number) for number in range(6)])
    config = DataConfig(source="flashrag", path=spec, document_tokens=1200, validation_questions=2)
    example = load_examples(config, load_tokenizer(), "train")[0]
    assert 944 <= example.document_tokens <= 1200
    job = Job("nq", spec, "", document_tokens=1200, to=str(tmp_path / "out"))
    manifest = prepare(job)
    assert manifest["questions"] == 6 and manifest["licence"] == "CC BY-SA 3.0"
    assert manifest["sources"] == {"questions": {"address": "tfds://natural_questions/longt5:validation"}}


def test_unusable_tfds_records_are_numbered(tfds_dir):
    records = [nq_record(0), nq_record(1, answer="", all_answers=[]), nq_record(2, context="Nothing here.")]
    records += [nq_record(3, question=" "), nq_record(0)]
    spec = tfds_dir("natural_questions/longt5", records)
    with pytest.raises(UserError, match=r":2: answer: no answer that is not blank"):
        read_questions(spec)
    problems = read_questions(spec, strict=False).problems
    assert [problem.removeprefix(spec) for problem in problems] == [
        ":2: answer: no answer that is not blank",
        ":3: context: no passage of its articles contains an answer",
        ":4: question: blank",
        ":5: id: 'nq-0' is also on line 1",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds://trivia_qa", "is not tfds://DATASET/CONFIG:SPLIT"),
        (
            "tfds://trivia_qa/rcc:validation",
            r"cannot read 'trivia_qa/rcc' from TFDS \(did you mean 'trivia_qa/rc'\?\)",
        ),
        (
            "tfds://trivia_qa/rc:validation?data_dir=nowhere",
            "TFDS has not prepared trivia_qa/rc:validation in",
        ),
    ],
)
def test_wrong_tfds_addresses(spec, message):
    with pytest.raises(UserError, match=message):
        read_questions(spec)


def test_cut_passages():
    assert cut_passages("") == []
    assert cut_passages("One two. Three four! Five?", words=4) == ["One two. Three four!", "Five?"]
    assert cut_passages("A line\nwithout stops\n\nand more", words=3) == [
        "A line",
        "without stops",
        "and more",
    ]
    assert cut_passages("Mr. 5 is 3.5 m tall", words=100) == ["Mr. 5 is 3.5 m tall"]
    long = " ".join(["word"] * 300)
    assert cut_passages(f"Short. {long}. End.", words=10)[1] == f"{long}."
    assert np.sum([len(p.split()) for p in cut_passages(f"Short. {long}. End.", words=10)]) == 302


class _Hub(http.server.BaseHTTPRequestHandler):
    """Serves one file at the address at which the hub serves a data set's file."""

    def __init__(self, body, *arguments):
        self._body = body
        super().__init__(*arguments)

    def do_HEAD(self):
        found = self.path == "/datasets/someone/questions/resolve/main/folder/dev.jsonl"
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", "0" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(self._body) if found else 0))
        self.end_headers()
        return found

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(self._body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(rows, write):
    with open(write(rows), "rb") as file:
        body = file.read()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Hub, body))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_on_the_hub(hub, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    path = local_file("hf://datasets/someone/questions/folder/dev.jsonl", "data.path", endpoint=hub)
    assert len(read_questions(path).questions) == 40
    with pytest.raises(
        UserError, match=r"^data\.path: cannot download 'hf://.*none\.jsonl' .*name the file$"
    ):
        local_file("hf://datasets/someone/questions/none.jsonl", "data.path", endpoint=hub)
    with pytest.raises(UserError, match=r"is not of the form hf://datasets/OWNER/NAME/FILE"):
        local_file("hf://someone/questions", "data.path")
    assert local_file("plain.jsonl", "data.path") == "plain.jsonl"

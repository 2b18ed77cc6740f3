import dataclasses

import pytest

from memocr_jax.agent.prompts import (
    DEFAULT_TEMPLATES,
    Image,
    Special,
    Templates,
    Text,
    Tokens,
    _check_template,
    draft_prompt,
    load_templates,
    read_document_prompt,
    read_prompt,
    read_text_prompt,
)
from memocr_jax.core.errors import UserError


def plain(prompt):
    """The prompt as one string, and the length of its prefix in that string."""
    shown = []
    for piece in prompt.pieces:
        match piece:
            case Text(text):
                shown.append(text)
            case Special(name):
                shown.append(f"<|{name}|>")
            case Tokens(ids):
                shown.append(f"<{len(ids)} tokens>")
            case Image(index):
                shown.append(f"<image {index}>")
    return "".join(shown), len("".join(shown[: prompt.prefix_pieces]))


def test_chat_markup():
    text, _ = plain(read_prompt("Q?"))
    assert text.startswith(f"<|im_start|>system\n{DEFAULT_TEMPLATES.system}<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("Q?<|im_end|>\n<|im_start|>assistant\n")


def test_the_order_of_a_draft_and_where_its_prefix_ends():
    text, cut = plain(draft_prompt("THE QUESTION", [1, 2, 3], "THE MEMORY"))
    places = [text.index(part) for part in ("section by section", "THE QUESTION", "<3 tokens>", "THE MEMORY")]
    assert places == sorted(places)
    assert cut == text.index("THE MEMORY"), "all that comes before the memory is shared"


@pytest.mark.parametrize("memory", ["", " ", "\n\t\n"])
def test_a_blank_memory_reads_as_nothing_yet(memory):
    assert DEFAULT_TEMPLATES.no_memory in plain(draft_prompt("Q", [1], memory))[0]
    assert DEFAULT_TEMPLATES.no_memory in plain(read_text_prompt("Q", memory))[0]


def test_the_memory_format_changes_only_the_instruction():
    markdown, cut = plain(draft_prompt("Q", [1], "M"))
    html, html_cut = plain(draft_prompt("Q", [1], "M", memory_format="html"))
    assert markdown[:cut] == html[:html_cut]
    assert "Markdown" in markdown and "HTML" in html and "Markdown" not in html


def test_the_page_is_the_prefix_of_a_read_and_the_question_is_not():
    text, cut = plain(read_prompt("THE QUESTION"))
    assert "<|im_start|>user\n<|vision_start|><image 0><|vision_end|>" in text[:cut]
    assert text[cut:] == "THE QUESTION<|im_end|>\n<|im_start|>assistant\n"
    assert "\\boxed{}" in text


def test_baselines_share_all_but_the_question():
    for prompt in (read_text_prompt("THE QUESTION", "MEMORY"), read_document_prompt("THE QUESTION", [1, 2])):
        text, cut = plain(prompt)
        assert cut == text.index("THE QUESTION") and "\\boxed{}" in text


def test_braces_and_markup_in_texts_are_left_alone():
    text, _ = plain(draft_prompt("what is {x}?", [1], "{memory} {{}} \\boxed{1}"))
    assert "what is {x}?" in text and "{memory} {{}} \\boxed{1}" in text


def test_the_default_templates_pass_their_own_check():
    for name, text in dataclasses.asdict(DEFAULT_TEMPLATES).items():
        _check_template(name, name, text)


def test_a_users_templates_replace_the_defaults_by_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("draft: 'Q {question} A {article} M {memory}'\nsystem: 'S {{literal}}'\n")
    templates = load_templates(str(file))
    assert templates == dataclasses.replace(
        DEFAULT_TEMPLATES, draft="Q {question} A {article} M {memory}", system="S {{literal}}"
    )
    text, _ = plain(draft_prompt("q", [1], "m", templates=templates))
    assert text == (
        "<|im_start|>system\nS {literal}<|im_end|>\n<|im_start|>user\n"
        "Q q A <1 tokens> M m<|im_end|>\n<|im_start|>assistant\n"
    )
    assert load_templates("") == DEFAULT_TEMPLATES == Templates()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("draft: '{question} {article}'", r"draft: field \{memory\} is missing"),
        ("draft: '{question} {articel} {memory}'", r"unknown field \{articel\} \(did you mean 'article'\?\)"),
        ("read: '{page} {question} {question}'", r"\{question\} occurs 2 times"),
        ("read: '{question} {page}'", r"\{page\} must come before \{question\}"),
        ("read: '{page} {question} \\boxed{'", "a single brace"),
        ("system: 'I know {question}'", r"unknown field \{question\} \(this template takes no fields\)"),
        ("drafts: 'x'", r"'drafts' is not a template \(did you mean 'draft'\?\)"),
        ("system: 7", "system is int, not a text; quote it"),
        ("- a list", "must map names of templates to texts"),
        ("a: [", "is not a YAML file"),
    ],
)
def test_wrong_templates_are_refused_with_the_fix(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_templates(str(file))
    assert "\n" not in str(error.value)


def test_a_missing_template_file(tmp_path):
    with pytest.raises(UserError, match=r"^prompts\.path: cannot read"):
        load_templates(str(tmp_path / "none.yaml"))

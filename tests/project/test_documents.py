"""What README.md, CONTRIBUTING.md and docs/ name exists; pages that are made are current."""

import importlib
import re
from pathlib import Path

import pytest

from adazeta.cli import _COMMANDS, main
from adazeta.cli.output import NOT_SET_BY_USERS
from adazeta.cli.settings_document import SECTIONS, settings_document
from adazeta.support.settings import settings_of
from tests.helpers.paths import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "kernels/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", without_code(text_of(document)), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


def links(document: Path) -> list[str]:
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(text_of(document)))
    return [link for link in found if not link.startswith(("http://", "https://", "mailto:"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_anchors_that_exist(document):
    for link in links(document):
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), f"{document.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{document.name} links to {link}"


def test_a_link_to_what_is_not_there_is_found(tmp_path):
    document = tmp_path / "page.md"
    document.write_text(
        "# One Title: `x`\n```\n[no](a.md)\n```\n[a](b.md#c) ![d](e.svg) [f](#one)\n"
    )
    assert links(document) == ["b.md#c", "e.svg", "#one"]
    assert anchors(document) == {"one-title-x"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_that_documents_name_exist(document):
    tops = "adazeta|kernels|benchmarks|tests|docs|examples"
    for path in re.findall(rf"`((?:{tops})/[\w./]*\w/?)`", without_code(text_of(document))):
        path = path.rstrip("/")
        assert (ROOT / path).exists(), f"{document.name} names {path}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_that_documents_import_exist(document):
    pattern = r"from (adazeta[\w.]*|benchmarks[\w.]*) import ([\w, ]+)"
    for module, names in re.findall(pattern, text_of(document)):
        found = importlib.import_module(module)
        for name in names.split(","):
            assert hasattr(found, name.strip()), f"{document.name}: {module}.{name}"


def test_the_readme_fits_on_a_few_screens():
    assert len(text_of(ROOT / "README.md").split()) <= 1000


def test_every_page_of_the_docs_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
    assert set(ROOT.glob("docs/*.md")) <= reached


def test_the_page_of_settings_is_that_of_the_help_texts(capsys):
    assert main(["info", "--settings"]) == 0
    assert text_of(ROOT / "docs/settings.md") == capsys.readouterr().out, (
        "adazeta info --settings > docs/settings.md"
    )


def test_the_page_of_settings_has_every_setting_of_ours_that_users_set(capsys):
    page = settings_document(leave_out=NOT_SET_BY_USERS)
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    help_text = capsys.readouterr().out
    for kind in SECTIONS.values():
        for name, field in settings_of(kind, leave_out=NOT_SET_BY_USERS).items():
            assert f"--{name}" in help_text
            if name in vars(kind)["__annotations__"]:
                assert page.count(f"\n| `{name}` |") == 1
                assert len(field.metadata["help"]) > 10
    assert "task_type" not in page


def test_help_texts_are_sentences_that_stand_alone():
    for kind in SECTIONS.values():
        for name, field in settings_of(kind).items():
            if name in vars(kind)["__annotations__"]:
                text = field.metadata["help"]
                assert text.endswith("."), name
                assert text[0].isupper() or text[0] in "'.", name
                leaning = r"\b(as above|the same for|their output|that cache)\b"
                assert not re.search(leaning, text.lower()), name


def test_pages_name_only_commands_that_exist():
    for document in DOCUMENTS:
        code = "\n".join(re.findall(r"```sh\n(.*?)```", text_of(document), flags=re.DOTALL))
        named = set(re.findall(r"^adazeta (\w+)", code, flags=re.MULTILINE))
        assert named <= set(_COMMANDS), document.name

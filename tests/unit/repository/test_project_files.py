"""The files with which others join the project: what they name exists, and forms have what GitHub requires."""

import importlib.metadata
import re

import pytest
import yaml
from places import ROOT

PAGES = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#([\w-]+))?\)", text)
    files = re.findall(r"(?<![\w./])((?:verl_gsd|tests|scripts|docs)/[\w./-]+)", text)
    assert [name for name in [*(link for link, _ in links), *files] if not (ROOT / name).exists()] == []
    for name, part in links:
        headings = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(encoding="utf-8") if part else "", re.MULTILINE)
        assert not part or part in [heading.lower().replace(" ", "-") for heading in headings]


def test_the_files_have_the_version_of_the_package():
    version = importlib.metadata.version("verl-gsd")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version and {"cff-version", "message", "title", "authors"} <= citation.keys()
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["Unreleased", version]


def test_there_is_a_form_for_a_bug_a_question_and_an_idea():
    assert [form.stem for form in FORMS] == ["bug", "idea", "question"]


@pytest.mark.parametrize("form", FORMS, ids=[form.stem for form in FORMS])
def test_a_form_has_what_github_requires(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content["name"] and content["description"] and content["body"]
    questions = [field for field in content["body"] if field["type"] != "markdown"]
    assert all(re.fullmatch("[a-z]+", field["id"]) and field["attributes"]["label"] for field in questions)
    assert len({field["id"] for field in questions}) == len(questions)
    assert any(field.get("validations", {}).get("required") for field in questions)

"""The documentation: it builds strictly, a reader's words find something in it, and the README stays an overview."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compresskd
from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError
from compresskd.config.schema import register
from compresskd.config.shipped import conf_dir

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WORDS = ("resume", "fine-tune", "TT-rank", "fake quantization", "callback", "tied weights")
PAGES = [ROOT / "README.md", *(path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts)]


def lines_of_commands(place):
    """Of a page those in blocks of shell, of a file of the configuration those that its comments indent."""
    text = place.read_text(encoding="utf-8")
    if place.suffix == ".yaml":
        blocks = ["\n".join(re.findall(r"^#   +(\S.*?)(?:   +\(.*)?$", text, re.MULTILINE))]
    else:
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands(places=PAGES):
    """What pages tell a reader to run with overrides: (page, arguments)."""
    for page in places:
        for line in lines_of_commands(page):
            words = shlex.split(line, comments=True)
            at = next((at for at, word in enumerate(words) if Path(word).name == "compresskd"), len(words))
            arguments = words[at + 1 :]
            of_a_run = arguments and (arguments[0][0] == "-" or "=" in arguments[0])
            if of_a_run and not any(word.startswith("goal=") for word in arguments[:2]):
                yield page.name if page.suffix == ".yaml" else page.relative_to(ROOT), arguments


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of HTML pages, from a copy of the sources: the build writes pages of its own beside them."""
    place = tmp_path_factory.mktemp("docs")
    source = place / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("_build", "api", "__pycache__"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, place)
    command = [
        sys.executable,
        "-P",
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        str(source),
        str(place / "html"),
    ]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return place / "html"


def text_of(page):
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_pages_build_without_a_warning_and_ask_nothing_from_outside(built):
    for page in built.glob("*.html"):
        outside = re.findall(r'(?:src|<link[^>]+href)="(https?:[^"]+)"', page.read_text(encoding="utf-8"))
        assert not outside, page


@pytest.mark.slow
def test_every_option_of_the_configuration_is_on_its_page(built):
    text = text_of(built / "reference" / "configuration.html")
    for path in conf_dir().glob("*/*.yaml"):
        assert f"{path.parent.name}={path.stem}" in text, path
    assert "quant.activation_bits" in text


@pytest.mark.slow
def test_every_room_is_in_the_picture_and_has_its_page(built):
    picture = (built / "architecture.html").read_text(encoding="utf-8")
    package = Path(compresskd.__file__).parent
    rooms = [
        path.stem for path in package.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"
    ]
    rooms = [room for room in rooms if not room.startswith("_")]
    assert len(rooms) > 10
    for room in rooms:
        assert f">{room}</text>" in picture
        assert (built / "reference" / "api" / f"{room}.html").exists()


@pytest.mark.slow
def test_commands_of_the_pages_compose(run_cli, work):
    shutil.copytree(ROOT / "tests" / "cli" / "my_project", work, dirs_exist_ok=True)
    found = {
        tuple(  # the first of swept values
            re.sub(r"(=\w+)(,\w+)+$", r"\1", word) for word in arguments if word != "-m"
        ): page
        for page, arguments in commands()
    }
    assert len(found) > 15
    for arguments, page in found.items():
        outcome = run_cli(*arguments, "--cfg", "job")
        mistaken = "strategy=distil" in arguments  # shown to be refused
        assert outcome.status == (2 if mistaken else 0), f"{page}: {arguments}: {outcome.err}"


RECIPES = sorted((conf_dir() / "experiment").glob("*.yaml"))
ABSENT = {"data.path", "teacher.id", "teacher.weights", "student.id"}  # of the reader


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [pytest.param(words, id=f"{page}:{at}") for at, (page, words) in enumerate(commands(RECIPES))],
)
def test_commands_of_the_recipes_lack_nothing_but_files(arguments, work):
    register()
    for split in ("train", "validation", "test"):  # a language model of characters needs no other file
        (work / f"{split}.txt").write_text(" ".join(f"{split}{number}" for number in range(1000)))
    characters = "experiment=tinyshakespeare_front" in arguments
    named = [word for word in arguments if word != "-m" and not word.startswith("data.path=")]
    path = f"data.path={work if characters else 'nowhere'}"
    jobs = compose_jobs([*named, path], multirun="-m" in arguments).jobs
    for job in {f"{job.config.strategy.name} {job.config.student}": job for job in jobs}.values():
        faults = []
        try:
            build_jobs([job])
        except ConfigError as lacking:
            faults = lacking.faults
        assert {fault.key for fault in faults} <= ABSENT, faults


def test_recipes_have_commands():
    assert len({page for page, _ in commands(RECIPES)}) > 10


def test_tutorial_shows_the_messages_of_mistakes(run_cli):
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    section = text.partition("## Mistakes are cheap")[2].partition("\n## ")[0]
    command, shown = re.findall(r"```(?:sh|text)\n(.*?)```", section, re.DOTALL)
    outcome = run_cli(*shlex.split(command)[1:])
    assert outcome.status == 2
    assert f"exit code {outcome.status}" in section
    assert outcome.err.strip() == shown.strip()


def test_keys_that_the_pages_name_are_in_the_configuration():
    groups = ("compress", "quant", "kd", "train", "data", "rank_schedule")
    known = "\n".join(path.read_text(encoding="utf-8") for path in conf_dir().rglob("*.yaml"))
    names = set(re.findall(r"^\s*(\w+):", known, re.MULTILINE))
    written = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(rf"`'?((?:{'|'.join(groups)})\.\w+)=", written))
    assert len(named) > 20
    unknown = [key for key in named if key.partition(".")[2] not in names]
    assert not unknown


@pytest.mark.parametrize("words", WORDS)
def test_words_of_the_field_are_found(words):
    pages = [path for path in DOCS.rglob("*.md") if words.lower() in path.read_text(encoding="utf-8").lower()]
    assert len(pages) >= 2, f"{words}: {pages}"


def test_readme_is_an_overview_whose_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 8
    for link in links:
        assert (ROOT / link).exists(), link


def test_version_is_the_same_everywhere():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == compresskd.__version__
    assert f"## {compresskd.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

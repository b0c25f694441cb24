"""Hooks of MkDocs, named in mkdocs.yml: the site has what is outside docs/ too, and one text serves GitHub and the site.

README is the first page; CHANGELOG, CONTRIBUTING and the like are pages. A file of the repository that a page links to is shown
under code/, so that the built site needs nothing else to be read.
"""

import html
import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs"
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Pages of the site that are next to docs/, by their path in the repository."""
_CODE = "code"
_MERMAID = "mermaid.tiny.js"
_FRAMES = "iframe-worker.js"
_FRAMES_ELSEWHERE = "https://unpkg.com/iframe-worker/shim"
_STYLE = "site.css"
_DIAGRAM = 'class="mermaid"'
_FENCE = re.compile(r"^( *)(```+|~~~+)[^\n]*\n.*?^\1\2[^\n]*$", re.MULTILINE | re.DOTALL)
_OPENING = re.compile(r"^( *(?:```+|~~~+))[ ]*$", re.MULTILINE)
_PROMPT = re.compile(r"^ *\$ ", re.MULTILINE)
_CODE_BLOCK = re.compile(r'<div class="highlight">(?=<pre>(.*?)</pre>)', re.DOTALL)
_PROMPT_SPAN, _OUTPUT_SPAN = '<span class="gp">', re.compile(r'<span class="go">.*?</span>\n?', re.DOTALL)
_CELL, _CELL_CODE = re.compile(r"<td\b.*?</td>", re.DOTALL), re.compile(r"(?<=<code>)[^<]+(?=</code>)")
_WORD = re.compile(r"(?<!\S)(\S{1,32})(?!\S)")
_TAG = re.compile(r"<[^>]+>")
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
_LIST_ITEM = re.compile(r"(?:[-*+]|\d+\.) ")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".md": "markdown"}


def on_config(config: "MkDocsConfig") -> None:
    """Puts pages where `nav` names a folder, by a path that ends in /, or by * the pages of docs/ that it does not name."""
    named = set(re.findall(r"[\w./-]+[.]md", str(config.nav)))
    others = sorted(path.name for path in (ROOT / DOCS).glob("*.md") if path.name not in named)
    config.nav = [_with_pages(item, others) for item in config.nav or []]


def on_files(files: "Files", *, config: "MkDocsConfig") -> "Files":
    """Adds the pages that are not under docs/, and one for each file or folder outside docs/ that a page links to."""
    from mkdocs.structure.files import File

    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in PAGES}
    for path, text in texts.items():
        files.append(File.generated(config, PAGES[path], content=text))
    texts |= {f"{DOCS}/{one.src_uri}": one.content_string for one in files.documentation_pages() if one.abs_src_path}
    linked = {_repository_path(found, path) for path, text in texts.items() for found in _links(text)}
    for path in sorted(_shown(linked)):
        files.append(File.generated(config, _site_path(path), content=_code_page(path)))
    for name in (_FRAMES, _MERMAID, _STYLE):
        files.append(File.generated(config, name, abs_src_path=str(Path(__file__).with_name(name))))
    return files


def on_page_markdown(markdown: str, *, page: "Page", **_: object) -> str:
    """The page as Python-Markdown reads it, with links to where the site has their targets."""
    here = page.file.src_uri
    if here.startswith(f"{_CODE}/"):
        return markdown
    source = next((path for path, uri in PAGES.items() if uri == here), f"{DOCS}/{here}")
    return outside_fences(markdown, lambda text: _with_blank_lines(_LINK.sub(lambda link: _on_site(link[1], source), text)))


def on_page_content(page_html: str, **_: object) -> str:
    """The page with what the copy button of a console block copies, and with the options in its tables each in one piece.

    By itself the button copies prompts and outputs too, and a browser breaks a line inside `--data.skip`.
    """
    return _CELL.sub(_with_whole_words, _CODE_BLOCK.sub(_with_commands, page_html))


def on_post_page(output: str, *, page: "Page", **_: object) -> str:
    """The page with scripts that the theme would fetch from elsewhere: for search without a server, and for its diagrams."""
    here = posixpath.dirname(page.file.dest_uri) or "."
    output = output.replace(_FRAMES_ELSEWHERE, posixpath.relpath(_FRAMES, here))
    script = f'<script src="{posixpath.relpath(_MERMAID, here)}"></script>' if _DIAGRAM in output else ""
    return output.replace("<head>", f"<head>{script}", 1)


def on_post_template(output: str, **_: object) -> str:
    """The page of errors likewise."""
    return output.replace(_FRAMES_ELSEWHERE, _FRAMES)


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """The text with all but its code blocks changed; those with commands after `$ ` become console blocks."""
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), _as_console(fence[0])]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def notebook_page(text: str) -> str:
    """Cells and outputs of a notebook, in their order."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(re.sub(r"^# ", "## ", source) if cell["cell_type"] == "markdown" else _block(source, "python"))
        parts += [_output(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts)


def _with_pages(item: Any, others: list[str]) -> Any:
    if isinstance(item, dict):
        return {title: _with_pages(value, others) for title, value in item.items()}
    if isinstance(item, list):
        return [page for value in item for page in _as_list(_with_pages(value, others))]
    if item == "*":
        return others
    return _folder_pages(item) if str(item).endswith("/") else item


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _folder_pages(name: str) -> list[str]:
    """The pages of a folder: its index, then the others in the order in which the index links to them."""
    folder = ROOT / DOCS / name
    index = folder / "index.md"
    linked = _links(index.read_text(encoding="utf-8")) if index.exists() else []
    order = {link: number for number, link in reversed(list(enumerate(linked)))}
    pages = sorted(path.name for path in folder.glob("*.md"))
    return [f"{name}{page}" for page in sorted(pages, key=lambda page: (page != "index.md", order.get(page, len(order))))]


def _as_console(fence: str) -> str:
    """A block without a language as a console block, if it has commands after `$ `."""
    return _OPENING.sub(r"\1console", fence, count=1) if _PROMPT.search(fence) else fence


def _with_commands(block: re.Match[str]) -> str:
    """The beginning of a highlighted block; that of a console block with what its copy button copies."""
    if _PROMPT_SPAN not in block[1]:
        return block[0]
    commands = _TAG.sub("", _OUTPUT_SPAN.sub("", re.sub(r'<span class="gp">.*?</span>', "", block[1])))
    text = "&#10;".join(html.escape(html.unescape(line)) for line in commands.split("\n") if line.strip())
    return f'<div class="highlight" data-copy="{text}">'


def _with_whole_words(cell: re.Match[str]) -> str:
    """A cell of a table whose code does not break inside a word, unless that is long."""
    return _CELL_CODE.sub(lambda code: _WORD.sub(r'<span class="word">\1</span>', code[0]), cell[0])


def _links(markdown: str) -> list[str]:
    """The relative links of a text, without what follows their #."""
    return _LINK.findall(_FENCE.sub("", markdown))


def _repository_path(link: str, source: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _on_site(link: str, source: str) -> str:
    """The link from the page that `source` becomes to the page that its target becomes."""
    target = _site_path(_repository_path(link, source))
    return posixpath.relpath(target, posixpath.dirname(_site_path(source)) or ".")


def _site_path(path: str) -> str:
    """Where the site has a file of the repository, among the sources of its pages."""
    if path in PAGES or path.startswith(f"{DOCS}/"):
        return PAGES.get(path) or path.removeprefix(f"{DOCS}/")
    return f"{_CODE}/{path}/index.md" if (ROOT / path).is_dir() else f"{_CODE}/{path}.md"


def _shown(linked: set[str]) -> set[str]:
    """Files and folders outside docs/ that are linked, and the files in these folders."""
    outside = {path for path in linked if path not in PAGES and not path.startswith(f"{DOCS}/") and (ROOT / path).exists()}
    return outside | {file for path in outside if (ROOT / path).is_dir() for file in _files_in(path)}


def _files_in(folder: str) -> list[str]:
    return [
        f"{folder}/{path.name}" for path in sorted((ROOT / folder).iterdir()) if path.is_file() and path.suffix in _LANGUAGES
    ]


def _code_page(path: str) -> str:
    """A file of the repository as a page, a folder as the list of its files."""
    if (ROOT / path).is_dir():
        return "\n".join([f"# {path}/\n", *(f"- [{Path(file).name}]({Path(file).name}.md)" for file in _files_in(path))])
    text = (ROOT / path).read_text(encoding="utf-8")
    body = notebook_page(text) if path.endswith(".ipynb") else _block(text, _LANGUAGES.get(Path(path).suffix, "text"))
    return f"# {path}\n\n{body}\n"


def _block(text: str, language: str) -> str:
    return f"~~~~~~ {language}\n{text.rstrip()}\n~~~~~~"


def _output(output: dict[str, dict[str, str | list[str]] | list[str]]) -> str:
    """What a cell printed or showed: a picture, else its text."""
    data = output.get("data", {})
    if isinstance(data, dict) and (png := data.get("image/png")):
        return f"![output](data:image/png;base64,{''.join(''.join(png).split())})"
    return _block("".join(output.get("text") or (data["text/plain"] if isinstance(data, dict) else "")), "text")


def _with_blank_lines(text: str) -> str:
    """The text with a blank line before each list and table after a paragraph: GitHub needs none, Python-Markdown does."""
    lines: list[str] = []
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        starts = any(
            matches(line) and before.strip() and not matches(before) and not before.startswith(" ")
            for matches in (_LIST_ITEM.match, lambda one: one.startswith("|"))
        )
        lines += ["", line] if starts else [line]
    return "\n".join(lines)

"""Reference pages of docs/, from the code: options of commands, and the data dictionary. `make reference` writes them."""

from pathlib import Path

from website.options import FOLDER, option_pages


def reference_pages() -> dict[str, str]:
    """All generated pages, by their path in the repository."""
    from dataset_builder.exports.dictionary import PAGE, dictionary_page

    return {**option_pages(), PAGE: dictionary_page()}


def write_reference(root: Path) -> None:
    """Writes the pages, and removes those of commands that are gone."""
    pages = reference_pages()
    for path in (root / FOLDER).glob("*.md"):
        if path.relative_to(root).as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")

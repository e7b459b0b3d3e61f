"""The site holds all that its pages link to, also where it lies outside docs/: README.md is its first page, a script or a
manifest a page that shows it, a folder a page that lists it. Links are written for the repository and are set here."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")
ITEM = re.compile(r"(\d+\.|[-*]) ")
CODE = re.compile(r"`[^`]+`")
SHOWN_LINES = 500  # of a file that is a page; a longer one is downloaded
LANGUAGES = {".yaml": "yaml", ".py": "python", ".lua": "lua", ".sh": "sh", ".json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add whatever is linked, and what is linked from there."""
    ahead = [PurePosixPath("README.md"), *(_source(file.src_uri) for file in files.documentation_pages())]
    seen = set(ahead)
    for path in ahead:  # which grows
        if path.parts[0] != "docs" or (ROOT / path).is_dir():
            for file in _made(path, config):
                files.append(file)
        for target in _linked(path):
            if target not in seen:
                seen.add(target)
                ahead.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Set each link that leads into the repository to where the site has it."""
    del config, files
    source = _source(page.file.src_uri)
    if not (ROOT / source).is_file():
        return markdown  # made here, with the site's own links

    def set_link(found: re.Match[str]) -> str:
        target = _target(source, found[2])
        if target is None:
            return found[0]
        return f"{found[1]}{posixpath.relpath(_place(target), posixpath.dirname(page.file.src_uri))}{found[3]}"

    return LINK.sub(set_link, _as_mkdocs_reads(markdown))


def _as_mkdocs_reads(markdown: str) -> str:
    """What a forge takes and MkDocs doesn't: code or a list right below a line, and bars in a table's code with a backslash."""
    lines = [""]
    in_code = False
    for line in markdown.splitlines():
        fence = line.startswith("```")
        if (fence and not in_code) or (not in_code and _begins_a_list(line, lines[-1])):
            lines.append("")
        if not in_code and line.startswith("|"):
            line = CODE.sub(lambda code: code[0].replace("\\|", "|"), line)
        lines.append(line)
        if fence and in_code:
            lines.append("")
        in_code ^= fence
    return "\n".join(lines)


def _begins_a_list(line: str, above: str) -> bool:
    return bool(ITEM.match(line)) and above != "" and not ITEM.match(above) and not above.startswith(" ")


def _linked(path: PurePosixPath) -> Iterator[PurePosixPath]:
    if path.suffix == ".md":
        for _, link, _ in LINK.findall((ROOT / path).read_text()):
            if target := _target(path, link):
                yield target
    elif (ROOT / path).is_dir():
        yield from _inside(path)


def _target(source: PurePosixPath, link: str) -> PurePosixPath | None:
    """What of the repository a link leads to."""
    path = posixpath.normpath(posixpath.join(source.parent, link))
    return PurePosixPath(path) if not path.startswith("..") and (ROOT / path).exists() else None


def _inside(folder: PurePosixPath) -> list[PurePosixPath]:
    files = sorted(path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [PurePosixPath(file.relative_to(ROOT).as_posix()) for file in files]


def _source(src_uri: str) -> PurePosixPath:
    """The file of the repository that a page of the site is made of."""
    if src_uri == "index.md":
        return PurePosixPath("README.md")
    in_docs = PurePosixPath("docs", src_uri)
    return in_docs if (ROOT / in_docs).exists() else PurePosixPath(src_uri.removeprefix("files/"))


def _place(path: PurePosixPath) -> str:
    """Where the site has a file or folder of the repository."""
    if path == PurePosixPath("README.md"):
        return "index.md"
    if (ROOT / path).is_dir():
        name = "README.md" if (ROOT / path / "README.md").exists() else "index.md"
        return _place(path / name) if name == "README.md" else f"files/{path}/index.md"
    if path.parts[0] == "docs":
        return str(path.relative_to("docs"))
    if path.suffix == ".md":
        return str(path)
    return f"files/{path}.md" if _is_shown(path) else f"files/{path}"


def _is_shown(path: PurePosixPath) -> bool:
    return (ROOT / path).read_bytes().count(b"\n") <= SHOWN_LINES


def _made(path: PurePosixPath, config: MkDocsConfig) -> Iterator[File]:
    """The page or file of the site for what lies outside docs/."""
    place = _place(path)
    if (ROOT / path).is_dir() and place.endswith("README.md"):
        return
    if (ROOT / path).is_dir():
        lines = (f"- [{inner}]({posixpath.relpath(_place(inner), posixpath.dirname(place))})\n" for inner in _inside(path))
        yield File.generated(config, place, content=f"# {path}\n\n{''.join(lines)}")
    elif path.suffix == ".md" or not _is_shown(path):
        yield File.generated(config, place, abs_src_path=str(ROOT / path))
    else:
        text = (ROOT / path).read_text()
        yield File.generated(config, place, content=f"# {path}\n\n``````{LANGUAGES.get(path.suffix, 'text')}\n{text}``````\n")

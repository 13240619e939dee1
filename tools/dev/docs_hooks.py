"""mkdocs hooks: the README is the home page, and links from the pages into the repository lead to copies of the files.

The pages are read in the repository as well as on the site, so their links are relative to the repository. On the site
a linked file is copied to `repository/`; a linked page of docs/ stays a page.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r'(\]\(|<img src=")([^)"#\s:]+)(#[^)"\s]*)?([)"])')
COPIES = 'repository'


def _place(target: str, folder: str) -> str | None:
    """The path from the repository's root that a link in `folder` leads to; None if it does not exist."""
    path = posixpath.normpath(posixpath.join(folder, target))
    return path if (ROOT / path).exists() else None


def _rewritten(text: str, folder: str, wanted: set[str]) -> str:
    def link(match: re.Match[str]) -> str:
        path = _place(match[2], folder)
        if path is None:
            return match[0]
        if path.startswith('docs/'):
            target = path.removeprefix('docs/')
        elif path == 'README.md':
            target = 'index.md'
        else:
            # A folder leads to its README; Markdown is copied as text, since it is not a page of the site.
            path = f'{path}/README.md' if (ROOT / path).is_dir() else path
            if not (ROOT / path).is_file():
                return match[0]
            wanted.add(path)
            target = f'{COPIES}/{path}' + ('.txt' if path.endswith('.md') else '')
        return f'{match[1]}{target}{match[3] or ""}{match[4]}'

    return LINK.sub(link, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the home page and the files that pages link to."""
    wanted: set[str] = set()
    home = _rewritten((ROOT / 'README.md').read_text(encoding='utf-8'), '.', wanted)
    files.append(File.generated(config, 'index.md', content=home))
    for page in files.documentation_pages():
        if page.src_uri != 'index.md':
            _rewritten(page.content_string, posixpath.join('docs', posixpath.dirname(page.src_uri)), wanted)
    for path in sorted(wanted):
        name = f'{COPIES}/{path}' + ('.txt' if path.endswith('.md') else '')
        files.append(File.generated(config, name, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links of a page at the site's files."""
    if page.file.src_uri == 'index.md':
        return markdown
    return _rewritten(markdown, posixpath.join('docs', posixpath.dirname(page.file.src_uri)), set())

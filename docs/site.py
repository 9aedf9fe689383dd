"""Hooks of mkdocs: the README is the first page, and links to files outside docs/ become their names."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ELSEWHERE = re.compile(r"\[([^\]]+)\]\((?:\.\./|(?=results/|LICENSE|conf/))([^)]*)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, whose links to pages start with docs/."""
    readme = (Path(config.config_file_path).parent / "README.md").read_text()
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A file of the repository has no page: it is named."""
    return ELSEWHERE.sub(lambda link: link[1] if link[2] in link[1] else f"{link[1]} (`{link[2]}`)", markdown)

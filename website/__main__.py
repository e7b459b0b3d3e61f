"""`make site`: the documentation as a site in build/site. MkDocs has an environment of its own, from requirements/site.txt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from localcluster import settings

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "website/mkdocs.yml"
SITE = ROOT / "build/site"


def build(target: Path) -> str:
    """Build the site into a folder, and return what was said. Raises CalledProcessError where MkDocs warns of anything."""
    folder = settings.read().cache / "site"
    subprocess.run(["sh", str(ROOT / "requirements/image-venv.sh"), str(folder), "site"], check=True)
    mkdocs = [str(folder / "bin/python"), "-m", "mkdocs", "build", "--strict"]
    command = [*mkdocs, "--config-file", str(CONFIG), "--site-dir", str(target)]
    silent = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of its theme's makers, about another program
    done = subprocess.run(command, env=silent, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def main() -> int:
    try:
        build(SITE)
    except subprocess.CalledProcessError as error:
        print(error.output, file=sys.stderr)
        return 1
    print(f"the site is in {SITE}; to look at it: python3 -m http.server --directory {SITE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

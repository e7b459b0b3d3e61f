"""The page itself: one file that needs no network. What comes from rows is data in it, never markup."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html")


def render(facts: dict[str, Any]) -> str:
    """The page of these facts. They stand in it as JSON in which no `<` can end the script that holds them."""
    text = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8")
    return page.replace("@NAME@", html.escape(str(facts["name"]))).replace("@FACTS@", text)

"""Results -> charts -> page. Numbers come in, text and pictures go out; no code here can see a tensor.

Importing this room is light: vl_convert and jinja2 are imported where a page or a picture is made.
"""

from __future__ import annotations

from deltarank.report._adapter_picture import adapter_picture
from deltarank.report._drawing import drawing_ahead
from deltarank.report._html import page_html
from deltarank.report._notebook import notebook_html
from deltarank.report._terminal import terminal_summary
from deltarank.report._write import report_ahead, write_report

__all__ = [
    "adapter_picture",
    "drawing_ahead",
    "notebook_html",
    "page_html",
    "report_ahead",
    "terminal_summary",
    "write_report",
]

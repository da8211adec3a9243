"""Results -> charts -> page. Numbers come in, text and pictures go out; no code here can see a tensor.

Importing this room is light: vl_convert and jinja2 are imported where a page or a picture is made.
"""

from __future__ import annotations

from deltarank.report.drawing.draw import drawing_process
from deltarank.report.page.adapter_poster import adapter_picture
from deltarank.report.page.html import page_html
from deltarank.report.page.write import report_process, write_report
from deltarank.report.terminal.weights import terminal_summary

__all__ = [
    "adapter_picture",
    "drawing_process",
    "page_html",
    "report_process",
    "terminal_summary",
    "write_report",
]

"""Reports on results: the page, its pictures, the summary in a terminal, the page of a blind test. No tensors.

Results become the data of a page (`view`), and these a page, charts or text. Importing this room is light: vl_convert
and jinja2 are imported when a page or a picture is made.
"""

from __future__ import annotations

from deltarank.report.drawing.draw import drawing_process
from deltarank.report.endpoints.html import endpoints_page, write_endpoints_report
from deltarank.report.fleet.html import fleet_html, write_fleet_page
from deltarank.report.page.adapter_poster import adapter_picture
from deltarank.report.page.html import page_html
from deltarank.report.page.write import report_process, write_page, write_report
from deltarank.report.terminal.fleet import fleet_summary
from deltarank.report.terminal.side_by_side import runs_side_by_side
from deltarank.report.terminal.summary import terminal_summary
from deltarank.report.vote.html import vote_page

__all__ = [
    "adapter_picture",
    "drawing_process",
    "endpoints_page",
    "fleet_html",
    "fleet_summary",
    "page_html",
    "report_process",
    "runs_side_by_side",
    "terminal_summary",
    "vote_page",
    "write_endpoints_report",
    "write_fleet_page",
    "write_page",
    "write_report",
]

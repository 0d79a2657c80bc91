"""What a bench found, as one HTML file that needs nothing else: pictures, tables, and all of the numbers."""

from kvstet.bench.report.page import report_html, write_report

__all__ = ["report_html", "write_report"]

"""Draws charts as PNG (vl_convert), and bundles the JavaScript for the page."""

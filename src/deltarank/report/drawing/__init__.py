"""Draws charts as PNG with vl_convert, and makes the script that draws them on the page."""

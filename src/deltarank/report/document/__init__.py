"""What all pages share: one HTML file that needs no network, from a template, styles and scripts of this room."""

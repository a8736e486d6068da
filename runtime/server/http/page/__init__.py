"""The page at ``/``: one HTML file, one script and one style sheet, served as they are."""

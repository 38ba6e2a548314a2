"""The report of a cycle's evaluation: Markdown, one self-contained HTML page, and a model card."""

"""Self-contained HTML and Markdown pages: scores, comparisons, and the frame they share."""

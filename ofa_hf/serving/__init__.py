"""The web page, the Space, and the page to review captions."""

"""A look at data before it is trained on: what is odd about it, and a page to correct captions."""

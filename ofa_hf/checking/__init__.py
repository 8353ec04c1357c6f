"""Check data before training, and review captions."""

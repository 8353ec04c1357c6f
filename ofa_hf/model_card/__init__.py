"""The model card of a folder, and the facts of its files that the card is made from."""

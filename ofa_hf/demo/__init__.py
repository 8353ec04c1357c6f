"""The embedded shop: a catalogue drawn on the spot, on which the whole of the project runs in minutes."""

"""Image files in folders and archives, by links, and by the names that tables use for them."""

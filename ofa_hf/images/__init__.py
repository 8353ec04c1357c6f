"""Image files as people have them: folders, names that tables write in their own way, links, archives."""

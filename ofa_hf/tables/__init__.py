"""Tables as people have them: CSV, JSON, Excel and parquet in any usual encoding → rows of cells and problems."""

from data_fixtures import jpeg, tiny_processor, tsv_line, write_muge  # noqa: F401

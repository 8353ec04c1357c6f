from publishing_fixtures import hub  # noqa: F401

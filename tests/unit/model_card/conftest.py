from publishing_fixtures import checkpoints, converted, hub, model_folder  # noqa: F401

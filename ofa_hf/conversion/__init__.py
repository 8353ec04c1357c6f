"""From an official fairseq checkpoint or a legacy OFA folder to a verified Hub-ready folder."""

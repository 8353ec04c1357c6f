"""From an official fairseq checkpoint or a legacy OFA-Chinese folder to a verified Hub-ready folder."""

"""From an official fairseq checkpoint or a legacy OFA-Chinese folder to a Hub-ready folder, proven exact."""

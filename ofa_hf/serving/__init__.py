"""The web page that captions what visitors upload."""

"""Files: foreign ones are checked before they are read, ours are there whole or not at all."""

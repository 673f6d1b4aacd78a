"""Safe file access: foreign files are checked before reading, own files are written atomically."""

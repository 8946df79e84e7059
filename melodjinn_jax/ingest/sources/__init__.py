"""The metadata of the sources, as they really are, read into plans."""

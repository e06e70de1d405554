"""The forms in which data sets lie on disk; a file each. Knows nothing of particular data sets."""

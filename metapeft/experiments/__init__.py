"""The main job, which compares methods from one start, with its tables and its page."""

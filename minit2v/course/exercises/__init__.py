"""The exercises, one module a chapter: what is asked, what is right, and which mistakes are known. See exercise.py."""

"""The world of rendered scenes and what happens to its images: objects, words, corruptions, renditions, views."""

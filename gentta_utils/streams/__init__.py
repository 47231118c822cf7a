"""Streams: the images that a method meets, in order, with labels and ids; rendered or from folders."""

"""Memories of past images: rings, image pools, replay and a generative memory."""

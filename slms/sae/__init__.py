"""Sparse autoencoders and transcoders: coders, their sparse training step, SAELens's directory format, evaluation."""

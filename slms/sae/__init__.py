"""Sparse autoencoders and transcoders: coders, their sparse training step, SAELens's directory format, evaluation.

config      the configuration of a coder and its site, with all defaults
sparse      products over the picked latents only
jump        JumpReLU with its straight-through gradients
base        the parameters, decoding and loss that all coders share
coders      the six kinds of coder
reference   the same losses in dense autograd, as the specification
optim       Adam, its schedule, and the rule by which a latent counts as dead
training_coder  a coder in training, with its site and data statistics
fit         a plain training loop, without Lightning
export      writes SAELens directories
card        writes the card beside an exported coder
load        reads coders: SAELens directories, those of a run, many at once
circuit_tracer  writes the transcoders of a model's layers as a circuit-tracer transcoder set
quality     sums over documents, and the figures computed from them
evaluate    measures coders inside the language model
baselines   the baselines that a trained coder has to beat
control     trains a coder on a model with random weights
"""

"""Sparse autoencoders and transcoders: coders, their sparse training step, SAELens's directory format, evaluation.

config      what a coder is and where it is trained; the one home of its defaults
sparse      products over the picked latents alone
jump        JumpReLU with its straight-through gradients
base        what every coder does
coders      the six kinds
reference   the same losses in dense autograd: the specification
optim       Adam, its schedule, and when a latent counts as dead
training_coder  a coder in training, at its place in the model
fit         a plain training loop, without Lightning
export      SAELens directories, written and read
quality     sums over documents, and the figures made of them
evaluate    coders inside the language model
baselines   what a trained coder has to beat
control     a coder of a model with random weights
"""

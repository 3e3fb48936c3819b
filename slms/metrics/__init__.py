"""Metrics of how a model specialised: pure functions in `slms.metrics.functional`, thin torchmetrics classes beside it.

functional    the metrics as functions of tensors
units         counts of when each unit (neuron, pathway, latent) is on, by class of the token
activations   sparsity of a stream of activations; tokens drawn from it for graphs
loss          each document's loss
communities   communities of a co-activation graph and their modularity
states        what all these classes share
trend         whether a number rises with scale, as it is or at equal loss

The classes keep sums, so they are exact under DDP and take the same memory for any number of tokens.
"""

"""Base models by name, where their MLPs are, how a dense model becomes a routed one, and files to keep them in.

source, hub, directory   a name → files on this machine, checked before anything is built
base                     files → dense model and tokenizer, pretrained or random
listing                  the MLPs of a model or base, as a list
anatomy, activations     the MLPs of every architecture, neuron-major; what flows through them
speedups, small_heads    exact, faster substitutes for modules of transformers
transformers_internals   the one file that reaches into transformers beyond what it documents
partition, routed_mlp    neurons → pathways; the MLP that runs only the chosen ones
dynamic                  rules that choose neurons of dense MLPs without training, and carry them out
convert, calibration     dense → routed model, started as near to the dense one as calibration allows
routed_config, routed_lm the routed Hugging Face classes
registration             what makes transformers' Auto classes know them
io, flops                save and load; what a token costs

activation_stream  activations of a frozen language model as shuffled training batches
capture            shards of safetensors with token ids, positions and documents, and `meta.jsonl`
card               the model card that lies beside saved weights
checksums          SHA-256 sums beside the weights of a model directory; a digest that names a model
clustering         clustering into groups of given sizes
families           the supported model families, a row each
collect            chunks of a frozen language model's activations, made by its hooks or read from disk
place              one name for every part of a model that can be routed, measured, hooked or logged
sites              named places inside a language model, read and replaced through PyTorch's own hooks
weights            what a dense MLP is made of, neuron-major

head        the embedding head of a causal language model, apart from its body
token_loss  losses of next tokens that never hold the logits of all tokens
"""

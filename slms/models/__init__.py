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
"""

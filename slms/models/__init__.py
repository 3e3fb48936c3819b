"""Opens base models by name, finds their MLPs, turns dense models into routed ones, and saves and loads both.

source, hub, directory   turn a name into files on this machine and check them before anything is built
from_gguf, to_gguf       turn a GGUF file into such a directory, and a model into a GGUF file
gguf_tokenizer           translates tokenizers between both formats
base                     turns files into a dense model and its tokenizer, pretrained or random
listing                  lists the MLPs of a model or base
anatomy, activations     find the MLPs of every architecture and read what flows through them
speedups, small_heads    exact, faster substitutes for modules of transformers
decode_step              one more token of a Llama-like model in one compiled call
decode_layout            the model as that call reads it, and whether it has changed since
transformers_internals   everything that relies on undocumented parts of transformers
partition, routed_mlp    group neurons into pathways; run only the chosen pathways
fused_mlp                the same as one compiled call
huge_pages               where weights lie in memory, for faster reading
routed_heads, head_slots route the query heads of an attention; leave out those that a token did not choose
dynamic                  rules that choose and execute neurons of dense MLPs without training
pools                    which pathways the tokens of a block may choose from, decided by the blocks before it
groups                   layers that share a router, begun and ended with each pass of their model
densities                sets the thresholds of routers to a density on given tokens
contributions            what each pathway of a routed MLP adds to its output
saved_partition          the pathway of each neuron, read from a model directory
convert, calibration     turn a dense model into a routed one, as close to it as calibration allows
group_calibration        sets what chooses in the layers that share a router
sensitivity, refit       how much predictions mind an MLP's output; the down-projection that fits what tokens choose
cut, pruning             cut a dense model's best fixed neurons out into smaller MLPs, the control of a routed one
routed_config, routed_lm the routed Hugging Face classes; variants makes classes of both kinds
cut_lm                   the cut Hugging Face classes
registration             registers these classes with transformers' Auto classes
io, flops                save and load models; count the FLOPs of a token
stock, stock_weights     which routed models are stock mixtures of experts, and writing them as such
stock_tokenizer          a tokenizer that other versions of transformers open

activation_stream  activations of a frozen language model as shuffled training batches
capture            writes activations to shards of safetensors with token ids, positions and documents
card               the model card beside saved weights
checksums          SHA-256 sums beside the weights of a model directory
clustering         clustering into groups of given sizes
assignment         learns which pathway each neuron belongs to
families           the supported model families, one row each
collect            chunks of a frozen language model's activations, computed or read from disk
mlp_norm           the affine map of the norm in front of an MLP
pair               two language models that read the same tokens, which a crosscoder compares
place              one name for every part of a model that can be routed, measured, hooked or logged
sites              named points inside a language model, read and replaced through PyTorch's hooks
site_hooks         the hooks that do so for one site
resumed            forward passes that begin at a layer
weights            the weights of a dense MLP, with one row per neuron; a digest that names a model

head        separates the embedding head of a causal language model from its body
token_loss  next-token losses that never hold the logits of all tokens
"""

"""Measurements. Each has a file with the name of its command, which gives only numbers; `slms.report` shapes them.

rows              the table that every measured number is a row of
evidence          what was gathered at a place, from which metrics are measured
metrics           what is measured at every place, and how it is shown: one entry for each metric
classes           the classes by which the tokens of a text are counted
passes            losses over text
pathways          what the pathways of routed modules serve
controls          the table of controls that choose pathways with the routers' loads
controlled        trained routers beside these controls
choice_losses     the loss if the oracle's choices, or random routers', are executed
results           assembles the content of a results file
schema            that content, one dataclass for each object
compare           runs side by side
agreement         how far the choices of two routed models agree
specialization    neurons, pathways or latents: sparsity, specialization, coherence, modularity
units             the units of a model, read during its forward pass
sparsity          activation sparsity by layer
ablation          the loss without a set of neurons
random_sets       random sets of neurons that match a unit in number and contribution
causal            causal specialization of the units of a place, beside that of random sets
redundancy        the loss without each token's best pathways
retention         the loss with the pathways of one domain alone
probes            answer against foil
dynamick          quality and cost of executing a share of the MLPs
frontier          its points, and where each rule breaks even
llama_cpp         the same in llama.cpp, where it is installed
gguf              GGUF files of a model, compared with it in llama.cpp
speed             how long a prompt and a token take
equal_time        how wide a dense MLP may be to be as fast as a routed one
kernels           which backend is fastest for a routed model here
sae               how good sparse coders are
features          the latents of a coder over a text
feature_graph     communities of features that are used together
examples          the uses of a latent that are worth showing
logit_effects     what a latent writes to the logits
attribution       which pathways write which latents
harness           tasks of lm-eval
study             a routed run beside its controls over seeds, and the rule of its verdict
suite             specialization across models of several sizes, and the rule of its verdict
export            a model against its export, which stock_reader opens in a process without slms
doctor            system, kernels, hub and cache of this machine
journal           keeps each part of a measurement as soon as it is done, so that a killed measurement continues
                  where it stopped
"""

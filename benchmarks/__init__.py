"""Compares speed and quality with rivals. Run as `python -m benchmarks.NAME`; not part of the installed package.

kernels -> times routed MLPs beside dense ones, layer by layer; kernel_rivals, kernel_parity -> what they are measured
against, and a check that it computes the same. gpu_resources -> what each Triton kernel needs of a GPU, found without
one. training_step -> an optimizer step of a whole routed model. coders -> sparse autoencoders trained by us and by
other libraries: coder_data -> their activations, split by document; coder_rivals -> the trainers; coder_sweep -> the
learning rates; coder_judge, coder_probing -> what is measured on the test documents. coder_step -> the cost of their
training step. heads -> an attention whose heads are routed beside the dense one. pathways -> what many pathways cost,
from 16 to single neurons. rules -> training-free rules beside the dense model.

Kept results, with the machine and the command of each, are in docs/benchmarks.md.
"""

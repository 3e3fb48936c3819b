"""Text: the embedded story corpus, corpora by name, token blocks with labels, and the Lightning data module.

files      text files → documents, one at a time
probe_tasks  a manifest of exact prompts, with the answer and a foil where an item has them
prompts    prompts of probe tasks as token blocks
stories    an endless annotated story grammar, deterministic by (seed, index, split)
stream     training batches straight from a corpus, for text larger than memory
text       corpora by name → documents → token blocks on disk
tokenizer  special tokens; a byte-level BPE on the story corpus

dataset  datasets in the hub's form, read row by row
"""

"""Text: the embedded story corpus, corpora by name, token blocks with labels, and the Lightning data module.

files      reads documents from text files, one at a time
probe_tasks  reads manifests of exact prompts, some with an answer and a foil
prompts    turns the prompts of probe tasks into token blocks
stories    an endless annotated story grammar; (seed, index, split) determines each story
stream     training batches straight from a corpus, for text larger than memory
text       turns corpora by name into documents and token blocks on disk
tokenizer  special tokens; trains a byte-level BPE on the story corpus

dataset  reads datasets in the hub's form, row by row
"""

"""LightningModules: a causal language model, dense or routed, or a control.

balances             what training keeps for each routed module: loads of global batches, budgets of densities
base_states          keeps the frozen base's hidden states of training blocks on disk
checkpoint           writes checkpoints whole or not at all, and checks them before a run resumes from them
cli                  the training command line: one YAML → one run directory
controls             the rivals of a routed run, one entry each
distill              what a run learns: the text, what its frozen base predicts, or both
language_model       a causal language model under training
lightning_internals  every place where SLMS reaches into Lightning beyond what it documents
logger               TensorBoard that cannot end a run
lost                 why the processes of a run lost each other, and what to do
moves                neurons that move between pathways while a run trains
optim                which weights change, AdamW for them, and a warm-up–cosine schedule
optimized            what training modules share about an optimizer's step
parser               finds configs by name and reports mistakes in one line
resume               what a resumed run may change
run_directory        the directory that a run writes into
sparse_autoencoder   sparse autoencoders and transcoders under training
strategies           Lightning's own, with what these models need
together             refuses options of a run that do not go together
trainer_options      which of Lightning's Trainer options train.py takes
trained              the model of a training checkpoint, as it was at that step
sources              where a run's model and text come from
"""

"""Gives the numbers of `slms.measure` their shapes, for people and for programs: files, tables, figures, cards.

results                writes and reads `llm_routing_results.json`
results_schema_1, results_schema_2                     its earlier forms
metrics_csv            every logged number, one row each               provenance           command, versions, hardware
artifacts              where a command's files go                      doctor               what `doctor` prints
tables                 tables on the terminal, and text of cells       words                tokens and names in cells
closing_table          the table with which a run ends                 place_tables         metrics by place
figures                `llm_monosemanticity.png`                       evolution            metrics over training
heatmap                pathway × class                                 palette              one look for every figure
word_classes           pathways of a token by word class
card                   the model card of a run                         compare              runs side by side
export                 the cards of exported models
export_coders          the cards of exported coders
ablation, compare, doctor, dynamick, features, probes, redundancy, sae, specialization, study, suite   of these commands
specialization_figure, frontier_figure, coder_figure                                 and their figures
neuronpedia            features as a Neuronpedia export
features, feature_schema, attribution, feature_tables, feature_page                 of `features`
"""

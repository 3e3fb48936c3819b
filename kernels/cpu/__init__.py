"""Implementations on the CPU; all but `grouped` are compiled by numba, an optional package that is slow to import.

grouped -> library products, pathway by pathway; rows, rows_backward -> neurons' rows read in place, in vector code;
amx, amx_backward -> bfloat16 on tile registers; fused -> router, choice and MLP of a layer in one call; gate_rows ->
neurons chosen by their own gates, gate_skipping -> their training; rule_rows -> dense MLPs under a training-free rule;
decoder -> the layers of a Llama-like model for one token.

Beneath: choice -> the router in loops; loops, pointwise -> what all threads run; operands, amx_tiles -> tile registers;
gate_loops, gate_twice, gate_choice -> the same for gate-selected neurons, gate_blocks -> for many tokens of them,
gate_screen -> for a single one that a copy of the gates in eight bits screens, gate_steps, gate_gradients ->
for a training step; rule_loops -> for rules; vectors, single, gathered, near_rows -> products in vector code; memory ->
addresses and bits; compiled -> numba and where its code is kept; team -> how many threads.
"""

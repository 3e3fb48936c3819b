"""Triton implementations. They are imported only where they run, because `triton` exists for Linux alone.

routes -> the rows on which each pathway works; decode -> few tokens; grouped, gradients -> many tokens, forward and
backward; masked -> many tokens of pathways too many to be grouped by; tiles -> the shipped sizes; problem, launch,
backward -> put all together; sparse -> single rows for the rules of dense models; gate, gate_many -> neurons chosen by
their own gates, for few tokens and for many.

Numbers that change from call to call, such as the number of tokens, are not specialized: each new kind of them (1, a
multiple of 16) would be compiled in the middle of serving.

choice  the largest of a token's scores, once or twice, and those that reach a threshold
rows    the rows that few tokens chose, of single neurons or of many small pathways
heads   queries and outputs of chosen attention heads
pieces  activations with derivatives in float32, pathways' neurons, matrix products by type
step    a routed MLP from its input to its output for a few tokens
"""

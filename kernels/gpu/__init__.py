"""Triton implementations. They are imported only where they run, because `triton` exists for Linux alone.

routes -> the rows on which each pathway works; decode -> few tokens; grouped, gradients -> many tokens, forward and
backward; tiles -> the shipped sizes; problem, launch, backward -> put all together; sparse -> single rows for the rules
of dense models; gate, gate_many -> neurons chosen by their own gates, for few tokens and for many.

Numbers that change from call to call, such as the number of tokens, are not specialized: each new kind of them (1, a
multiple of 16) would be compiled in the middle of serving.

pieces  activations with derivatives in float32, pathways' neurons, matrix products by type
step    a routed MLP from its input to its output for a few tokens
"""

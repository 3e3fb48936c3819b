"""Triton implementations. Imported only where they run: the package `triton` exists for Linux alone.

routes -> which rows each pathway works on; decode -> few tokens; grouped, gradients -> many tokens, forward and
backward; tiles -> sizes that are shipped; problem, launch, backward -> all put together; sparse -> single rows for the
rules of dense models.

Numbers that change from call to call, as that of the tokens, are not specialized: each new kind of them (1, a multiple
of 16) would be compiled anew in the middle of serving.

pieces  activations with derivatives in float32, pathways' neurons, matrix products by type
step    a routed MLP from its input to its output for a few tokens
"""

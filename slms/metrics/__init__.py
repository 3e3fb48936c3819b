"""How a model specialised: pure functions in `slms.metrics.functional`, thin torchmetrics classes beside it.

`pathways.PathwayCounts` counts when each pathway of one layer is chosen, `loss.DocumentLoss` sums each document's loss;
both keep sums only, so they are exact under DDP and do not grow with the number of tokens.
"""

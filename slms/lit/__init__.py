"""LightningModules: a causal language model, dense or routed."""

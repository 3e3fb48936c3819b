"""Lightning callbacks: they feed, log and reset metrics and write results; nothing is computed here.

metrics_csv      every logged number into metrics.csv
specialization   purity, entropy, SI and utilization of every routed layer, each epoch
evolution        how the routers settle over training; evolution.png and .svg
results          llm_routing_results.json, llm_monosemanticity.png and .svg, model/, the closing table
coders           the sparse autoencoders of a run, as SAELens directories
examples         a few of their latents with their strongest uses, each epoch
kernels          time the backends of routed MLPs at this run's shapes, where asked to
nan_guard        stop at a loss or gradient that is not finite
progress         what the terminal shows

parts        the parts of a run that callbacks read, with their types
tensorboard  what callbacks write to TensorBoard beside scalars
"""

from callbacks.coders import CoderWriter
from callbacks.evolution import Evolution
from callbacks.examples import FeatureExamples
from callbacks.kernels import KernelCalibration
from callbacks.metrics_csv import MetricsCsv
from callbacks.nan_guard import NanGuard
from callbacks.progress import Progress
from callbacks.results import ResultsWriter
from callbacks.specialization import Specialization

# The order is that in which their hooks run: the CSV logger first, the results last.
CALLBACKS = {
    "progress": Progress,
    "metrics_csv": MetricsCsv,
    "nan_guard": NanGuard,
    "kernels": KernelCalibration,
    "specialization": Specialization,
    "evolution": Evolution,
    "results": ResultsWriter,
}

# What a run of sparse autoencoders needs of them.
CODER_CALLBACKS = {name: CALLBACKS[name] for name in ("progress", "metrics_csv", "nan_guard")} | {
    "coders": CoderWriter,
    "examples": FeatureExamples,
}

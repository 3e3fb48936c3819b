"""Lightning callbacks. They feed, log and reset metrics and write results; they compute nothing themselves.

metrics_csv      writes every logged number into metrics.csv
specialization   logs purity, entropy, SI and utilization of every routed layer, each epoch
evolution        shows how the routers settle over training; evolution.png and .svg
results          writes llm_routing_results.json, llm_monosemanticity.png and .svg, model/, the closing table
coders           writes the sparse autoencoders of a run as SAELens directories
examples         shows a few of their latents with their strongest uses, each epoch
kernels          times the backends of routed MLPs at this run's shapes, if asked to
nan_guard        stops a run at a loss or gradient that is not finite
progress         prints what the terminal shows

parts        gives types to the parts of a run that callbacks read
tensorboard  writes figures, text tables and the hyper-parameter row to TensorBoard
"""

from slms.callbacks.coders import CoderWriter
from slms.callbacks.evolution import Evolution
from slms.callbacks.examples import FeatureExamples
from slms.callbacks.kernels import KernelCalibration
from slms.callbacks.metrics_csv import MetricsCsv
from slms.callbacks.nan_guard import NanGuard
from slms.callbacks.progress import Progress
from slms.callbacks.results import ResultsWriter
from slms.callbacks.specialization import Specialization

# Their hooks run in this order: the CSV logger first, the results last.
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

"""Measurements: numbers only, one file a measurement, named as its command; `slms.report` gives them shapes."""

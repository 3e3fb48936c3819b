"""The parser of train.py: configs by name, mistakes in one line."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from slms.cli import OneLineErrors

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def find_config(name: str) -> Path | None:
    """X, X.yaml, configs/X or configs/X.yaml, the first that is a file."""
    places = [folder / f"{name}{ending}" for folder in (Path(), CONFIGS) for ending in ("", ".yaml")]
    return next((place for place in places if place.is_file()), None)


def trains_coders(args: list[str]) -> bool:
    """Whether the config that `args` name is for sparse autoencoders: whether its model has `coders`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config")
    config = read_yaml(find_config(parser.parse_known_args(args)[0].config or ""))
    model = config.get("model") if isinstance(config, dict) else None
    return isinstance(model, dict) and "coders" in model


def read_yaml(path: Path | None) -> Any:
    """What a YAML file holds; None where it cannot be read: the parser says what is wrong with it."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path else None
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None


class FindConfig(ActionConfigFile):
    """`--config X` also looks into configs/; whatever has options of its own must be a mapping in it."""

    def __call__(self, parser, cfg, value, *args, **kwargs):
        """Replace a config's name by its path."""
        found = find_config(value)
        if found is None:
            known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
            parser.error(f"--config {value}: no such file; configs/ has {known}")
        config = read_yaml(found)
        options = [action.dest for action in parser._actions if not action.dest.endswith(".help")]
        for keys in sorted({tuple(option.split(".")[:-1]) for option in options}):  # jsonargparse takes anything
            node = config
            for key in keys:
                node = node.get(key) if isinstance(node, dict) else None
            if node is not None and not isinstance(node, dict):
                where = f"{'.'.join(keys)} is {node!r:.60}" if keys else found
                parser.error(f"{where}: it must be a mapping of options")
        super().__call__(parser, cfg, str(found), *args, **kwargs)


class TrainParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with one-line errors."""

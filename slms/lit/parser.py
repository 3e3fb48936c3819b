"""The parser of train.py, which finds configs by name and reports mistakes in one line."""

import re
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from slms.cli import OneLineErrors, hanging
from slms.files import CONFIGS
from slms.option_names import OptionNames

OWN = Path("configs")  # of the current directory


def find_config(name: str) -> Path | None:
    """The first of X and X.yaml that is a file: as a path, in configs/ of the current directory, or in the package."""
    places = [folder / f"{name}{ending}" for folder in (Path(), OWN, CONFIGS) for ending in ("", ".yaml")]
    return next((place for place in places if place.is_file()), None)


def known_configs() -> str:
    """The names that `--config` takes, in words."""
    return f"there are {', '.join(path.name for path in configs())}"


def configs() -> list[Path]:
    """The YAML files in configs/ and in the package, by name; of equal names the one that `find_config` takes."""
    found = {path.name: path for folder in (CONFIGS, OWN) for path in folder.glob("*.yaml")}
    return [found[name] for name in sorted(found)]


def configs_in_words() -> str:
    """The names that `--config` takes, each with the first sentence of its file, in lines that fit the terminal."""
    found = []
    for path in configs():
        comment = " ".join(
            line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
        )
        found.append((path.name, comment.partition(". ")[0].rstrip(".")))
    return "\n".join(hanging(found, max(len(name) for name, _ in found)))


def trains_coders(args: list[str]) -> bool:
    """Whether a command line trains sparse autoencoders: whether it, or its config's model, has `coders`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config")
    known, others = parser.parse_known_args(args)
    config = read_yaml(find_config(known.config or ""))
    model = config.get("model") if isinstance(config, dict) else None
    named = any(word.startswith("--model.coders") for word in others)
    return named or (isinstance(model, dict) and "coders" in model)


def read_yaml(path: Path | None) -> Any:
    """The content of a YAML file; None if it cannot be read, since the parser will say what is wrong with it."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path else None
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None


class FindConfig(ActionConfigFile):
    """Makes `--config X` find a config by its name, and refuses a config whose groups of options are no mappings."""

    def __call__(self, parser, cfg, values, *args, **kwargs):  # type: ignore[override]  # as jsonargparse's own
        """Replace a config's name with its path."""
        found = find_config(values)
        if found is None:
            parser.error(f"--config {values}: no such file; {known_configs()}")
        config = read_yaml(found)
        options = [action.dest for action in parser._actions if not action.dest.endswith(".help")]
        for keys in sorted({tuple(option.split(".")[:-1]) for option in options}):  # jsonargparse takes anything
            node = config
            for key in keys:
                node = node.get(key) if isinstance(node, dict) else None
            if node is not None and not isinstance(node, dict):
                where = f"{'.'.join(keys)} is {node!r:.60}" if keys else found
                parser.error(f"{where}: it must be a mapping of options")
        try:
            parser.option_names().check("", config)
        except ValueError as error:
            parser.error(f"{found}: {error}")
        super().__call__(parser, cfg, str(found), *args, **kwargs)


class TrainParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with one-line errors, which name an unknown option in full."""

    _line: ClassVar[list[str]] = []  # the words being parsed, also by the parsers that jsonargparse makes for a class
    _names: ClassVar[set[str]] = set()  # every option of the parser that the user called

    def option_names(self) -> OptionNames:
        """The options that exist; those of the Trainer may be classes, which have options of their own."""
        classes = ("callbacks", "logger", "plugins", "profiler", "strategy", "max_time", "val_check_interval")
        return OptionNames(self, [f"trainer.{name}" for name in classes])

    def parse_args(self, args=None, *more, **kwargs):
        """Check the options' names, then parse as jsonargparse does."""
        TrainParser._line = sys.argv[1:] if args is None else list(args)
        options = self.option_names()
        TrainParser._names = options.names
        try:
            options.check_line(self._line)
        except ValueError as error:
            self.error(error)
        return super().parse_args(args, *more, **kwargs)

    def error(self, message, ex=None):
        """Report an error in one line; jsonargparse names only the last part of an option that a class lacks."""
        given = [word[2:].partition("=")[0] for word in self._line]
        if part := re.match(r'Parser key "(\w+)":', str(message)):
            named = [name for name in given if name.endswith(f".{part[1]}")]
            named = named or [name for name in self._names if name.endswith(f".{part[1]}")]
            if len(named) == 1:
                message = str(message).replace(f'"{part[1]}"', f'"{named[0]}"', 1)
        if part := re.fullmatch(r"Option '([\w.]+)' is not accepted", str(message)):
            for name in [name for name in given if name.endswith(f".{part[1]}")]:
                section = name.removesuffix(f".{part[1]}")
                message = f"--{name}: its class has no such argument; --{section}.help=CLASS lists them"
        super().error(message, ex)

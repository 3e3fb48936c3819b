"""Train one YAML into one run directory: `python train.py --config routed_tinystories.yaml`; `--list` names them."""

from slms.main import train as main

if __name__ == "__main__":
    main()

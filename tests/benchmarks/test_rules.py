"""The benchmark of training-free rules prints every rule at every density, forced, on a tiny model."""

from types import SimpleNamespace

from benchmarks import rules
from slms.models.dynamic import RULES, dynamic_mlps
from tests.models.conftest import FAMILIES


def test_every_rule_is_timed_as_itself(monkeypatch, capsys):
    loaded = SimpleNamespace(model=FAMILIES["llama"]())
    seen, own = [], rules.time_together

    def timed(runs, device, seconds):
        seen.append(list(runs))
        return own(runs, device, seconds)

    forced, force = [], rules.force_rules
    monkeypatch.setattr(rules, "load_base", lambda name: loaded)
    monkeypatch.setattr(rules, "time_together", timed)
    monkeypatch.setattr(rules, "force_rules", lambda model: (force(model), forced.append(dynamic_mlps(model))))
    rules.main(["--layers=1", "--density", "0.5", "0.95", "--tokens", "1", "5", "--seconds=0"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" µs")[0].split(", dense")[0] for line in lines] == [
        f"density {density}, {n} tokens" for density in ("0.5", "0.95") for n in (1, 5)
    ]
    assert all(names == ["dense", *RULES] for names in seen) and all(f" {rule} " in lines[0] for rule in RULES)
    assert len(forced) == 1 + len(RULES) and all(mlp.forced for mlps in forced[1:] for mlp in mlps.values())

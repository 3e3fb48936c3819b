"""What a run leaves behind, for people and for programs.

schema       the content of `llm_routing_results.json`      results      write and read it
metrics_csv  every logged number, one row each              facts        command, versions, hardware
figures      `llm_monosemanticity.png`                      heatmap      pathway × class
tables       the closing table on the terminal              compare      runs side by side
"""

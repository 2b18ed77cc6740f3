"""Run directories as the trainer leaves them, generated: the report's only input is files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw, ImageFont

KINDS = ("QA", "QA_LOWRES", "GAP_FILL")
NAMES = ("Orlan Vek", "Mira Tosk", "Bex Ardune", "Lio Farrow", "Saro Whin")


HOSTILE = (
    "</pre></details></main><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    '"><svg onload=window.hacked=3>{{ 7 * 191 }}{% raw %}&lt;\x00\x1b[31m\ud800\u202eltr --><!-- ]]>'
)


@dataclasses.dataclass
class RunBuilder:
    """Writes a run directory piece by piece."""

    root: Path

    def config(self, **sections: dict[str, Any]) -> RunBuilder:
        base = {
            "run": {"seed": 3},
            "model": {"path": "configs/models/tiny.json", "init": "random", "dtype": "float32"},
            "data": {"source": "synthetic", "seed": 5, "max_chunks": 4, "chunk_tokens": 128},
            "rl": {"questions_per_step": 4, "group_size": 4},
            "agent": {"budget_tokens": 512, "low_res_factor": 4},
            "train": {"steps": 200},
        }
        (self.root / "config.yaml").write_text(yaml.safe_dump({**base, **sections}, sort_keys=False))
        return self

    def metrics(self, steps: int, seed: int = 0) -> RunBuilder:
        rng = np.random.default_rng(seed)
        with (self.root / "metrics.jsonl").open("w") as file:
            for step in range(1, steps + 1):
                up = 1 - math.exp(-step / (steps / 2 + 1))

                def noise(scale):
                    return float(rng.normal(0, scale))

                row = {
                    "step": step,
                    "reward/std": min(1.0, max(0.0, 0.1 + 0.7 * up + noise(0.05))),
                    "reward/aug_m": min(1.0, max(0.0, 0.05 + 0.5 * up + noise(0.06))),
                    "reward/aug_q": min(1.0, max(0.0, 0.02 + 0.4 * up + noise(0.06))),
                    "loss/total": noise(0.02),
                    "loss/policy": noise(0.02),
                    "kl/mean": 1e-4 * step + abs(noise(1e-4)),
                    "grad/norm": 0.4 + abs(noise(0.2)),
                    "draft/tokens": 180 + 80 * up + noise(10),
                    "read/tokens_std": 40 - 10 * up + noise(3),
                    "view/tokens_std": 210 + noise(20),
                    "group/zero_variance_std": max(0.0, 0.5 - 0.3 * up + noise(0.05)),
                    "render/failed": int(rng.random() < 0.05),
                    "render/truncated": 0,
                    "time/draft_s": 2 + noise(0.1),
                    "time/read_s": 1 + noise(0.1),
                    "time/render_s": 0.4 + noise(0.05),
                    "time/update_s": 3 + noise(0.2),
                    "time/step_s": 6.5 + noise(0.2),
                    "time/tokens_per_s": 5000 + noise(200),
                    "optim/learning_rate": 1e-6 * min(1, step / 20),
                }
                file.write(json.dumps(row) + "\n")
        return self

    def picture(self, memory: str, width: int, scale: float = 1.0, tag: str = "") -> tuple[str, int, int]:
        """Draw a memory as a page; (file, width, height)."""
        folder = self.root / "trajectories" / "pages"
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for line in memory.splitlines():
            size = 30 if line.startswith("# ") else 15
            for part in textwrap.wrap(line.lstrip("# "), int(width / size * 1.7)) or [""]:
                lines.append((part, size))
        height = sum(int(size * 1.5) for _, size in lines) + 32
        height += -height % 28
        image = Image.new("RGB", (width, height), "white")
        draw, y = ImageDraw.Draw(image), 16
        for part, size in lines:
            draw.text((16, y), part, "black", ImageFont.load_default(size))
            y += int(size * 1.5)
        if scale != 1:
            image = image.resize((max(28, int(width * scale)), max(28, int(height * scale))), Image.LANCZOS)
        name = "pages/" + hashlib.sha256(memory.encode("utf-8", "replace")).hexdigest()[:16] + tag + ".png"
        image.save(self.root / "trajectories" / name)
        return name, *image.size

    def trajectories(
        self, step: int, questions: int = 1, group: int = 4, chunks: int = 3, **override: Any
    ) -> RunBuilder:
        """One step's turns: `group` samples of each question. `override` replaces fields of every turn."""
        folder = self.root / "trajectories"
        folder.mkdir(exist_ok=True)
        with (folder / f"step_{step:06d}.jsonl").open("w") as file:
            for q in range(questions):
                for g in range(group):
                    for turn in self.sample(step, q, g, chunks):
                        file.write(json.dumps(turn | override) + "\n")
        return self

    def sample(self, step: int, q: int, g: int, chunks: int):
        """The turns of one sample: a draft for every chunk, then the three ways to read its page."""
        rng = np.random.default_rng([step, q, g])
        gold = NAMES[(step + q) % len(NAMES)]
        question = f"Who founded the harbour school of the town where {NAMES[q % 5]} was born?"
        common = {
            "step": step,
            "q": q,
            "g": g,
            "example_id": f"train-{step:04d}-{q}",
            "question": question,
            "answers": [gold, gold.split()[1]],
            "document_tokens": 128 * chunks - 17,
            "n_chunks": chunks,
            "stop": "eos",
            "weight": 1.0,
        }
        memory = f"# {gold} {'is likely' if g % 2 else 'answers it'}\n"
        for c in range(chunks):
            memory += (
                f"- **{NAMES[(g + c) % 5]}** founded the harbour school of Quell in {1800 + 7 * c + g}\n"
            )
            yield common | {
                "kind": "DRAFT",
                "chunk": c,
                "prompt": f"You read a document.\n<article>\nchunk {c} " + "word " * 60 + "\n</article>",
                "response": memory,
                "prompt_tokens": 240,
                "response_tokens": len(memory) // 4,
                "asked": None,
                "expected": None,
                "prediction": None,
                "reward": None,
                "advantage": float(rng.normal()),
                "page": None,
                "page_status": None,
                "view": None,
            }
        page, *_ = self.picture(memory, 448)
        for kind in KINDS:
            scale, tag = (0.25, "_32") if kind == "QA_LOWRES" else (0.8125, "_512")
            view, width, height = self.picture(memory, 448, scale, tag)
            cloze = kind == "GAP_FILL"
            expected = ["founded harbour 1807"] if cloze else [gold]
            right = bool(rng.random() < 0.5)
            answer = expected[0] if right else "Tosk"
            yield common | {
                "kind": kind,
                "chunk": None,
                "prompt": f"<image>\n{question}",
                "response": f"The page says so. \\boxed{{{answer}}}",
                "prompt_tokens": 130,
                "response_tokens": 23,
                "asked": "Orlan Vek ____ the ____ school of Quell in ____" if cloze else question,
                "expected": expected,
                "prediction": answer,
                "reward": float(right),
                "advantage": float(right) - 0.5,
                "page": page,
                "page_status": "OK",
                "view": {
                    "file": view,
                    "image_tokens": -(-width // 28) * -(-height // 28),
                    "width_px": width,
                    "height_px": height,
                },
            }


@pytest.fixture
def new_run(tmp_path):
    """A builder for an empty run directory."""

    def build(name: str = "tiny") -> RunBuilder:
        root = tmp_path / name
        root.mkdir()
        return RunBuilder(root)

    return build


@pytest.fixture
def hostile() -> str:
    """Text that breaks out of every place of an HTML page that forgets to escape it."""
    return HOSTILE

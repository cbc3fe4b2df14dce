"""``python -m vision.networks`` prints the table of networks in Markdown, with their parameters for 10 classes."""

from __future__ import annotations

import torch

from vision.embedding import head_name
from vision.networks import NETWORKS, build, parameters


def table() -> str:
    """The table: name, what it is, parameters and embedding width, for 10 classes and 3 channels of 32 x 32."""
    lines = ["| name | network | parameters | embedding |", "|---|---|---|---|"]
    for name, network in NETWORKS.items():
        with torch.device("meta"):
            model = build(name, 10, image_size=32)
        head = model.get_submodule(head_name(model, 10) or "")
        lines.append(f"| `{name}` | {network.text} | {parameters(model):,} | {head.in_features} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

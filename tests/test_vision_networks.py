"""Networks: parameter counts of the literature, shapes, gradients, weights from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recdenoise.errors import UserError
from recdenoise.resets import redraws
from vision import networks
from vision.embedding import head_name
from vision.networks import NETWORKS, build, load_weights, names, parameters
from vision.networks.__main__ import table

COUNTS = {
    "resnet20": 0.27e6,
    "resnet32": 0.46e6,
    "resnet44": 0.66e6,
    "resnet56": 0.85e6,
    "resnet18_small": 11.17e6,
    "resnet34_small": 21.28e6,
    "resnet50_small": 23.52e6,
    "preact18": 11.17e6,
    "preact34": 21.28e6,
    "cnn9": 4.43e6,
}
"""Millions with two decimals, as papers and public implementations print them."""


def on_meta(name: str, **options: Any) -> nn.Module:
    """The network without memory."""
    with torch.device("meta"):
        return build(name, 10, image_size=32, **options)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_of_the_literature(name: str) -> None:
    assert parameters(on_meta(name)) == pytest.approx(COUNTS[name], abs=5001)


def test_parameter_counts_that_follow_from_others() -> None:
    for name in ("resnet18", "resnet34", "resnet50"):  # torchvision's, but for the stem
        assert parameters(on_meta(f"{name}_small")) == parameters(on_meta(f"torchvision:{name}")) - 64 * 3 * (49 - 9)
    inception = on_meta("inception_small")
    norms = sum(part.weight.numel() for part in inception.modules() if isinstance(part, nn.BatchNorm2d))
    assert parameters(inception) - norms == 1_649_402  # Zhang et al., Table 1, whose norms have no scale
    assert parameters(on_meta("preact18", final_norm=True)) == parameters(on_meta("preact18")) + 2 * 512
    extra = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert parameters(on_meta("resnet20", shortcut="B")) == parameters(on_meta("resnet20")) + extra
    assert parameters(on_meta("mlp")) == 3072 * 512 + 512 + 512 * 256 + 256 + 256 * 128 + 128 + 1290


def test_depth_is_what_the_name_says() -> None:
    for depth in (20, 32, 44, 56):
        layers = [part for part in on_meta(f"resnet{depth}").modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth
    assert sum(isinstance(part, nn.Conv2d) for part in on_meta("cnn9").modules()) == 9


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("name", names())
def test_every_network_takes_the_usual_images(name: str, side: int, channels: int) -> None:
    with torch.device("meta"):
        model = build(name, 7, channels, image_size=side)
        assert model(torch.empty(2, channels, side, side)).shape == (2, 7)
    assert head_name(model, 7) is not None


@pytest.mark.parametrize("name", ["resnet20", "preact18", "inception_small", "convnet2", "mlp", "cnn9"])
def test_every_weight_learns(name: str) -> None:
    torch.manual_seed(0)
    size = 28 if name == "cnn9" else 20
    model = build(name, 3, 1, image_size=size)
    nn.functional.cross_entropy(model(torch.randn(4, 1, size, size)), torch.tensor([0, 1, 2, 0])).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert bool(torch.isfinite(value.grad).all()), key
        assert float(value.grad.abs().sum()) > 0 or ("conv" in key and key.endswith("bias")), key


@pytest.mark.parametrize("name", names())
def test_every_part_can_be_drawn_anew(name: str) -> None:
    assert len(list(redraws(on_meta(name), "target"))) > 2


def test_a_part_drawn_anew_has_the_distribution_of_a_new_one() -> None:
    torch.manual_seed(0)
    model = build("resnet20", 10)
    part = model.get_submodule("layer3")
    first = {name: value.clone() for name, value in part.named_parameters()}
    for redraw in redraws(part, "layer3"):
        redraw()
    for name, value in part.state_dict().items():
        if "conv" in name:
            assert not torch.equal(value, first[name])
            torch.testing.assert_close(value.std(), first[name].std(), rtol=0.05, atol=0)
            fan_out = value.shape[0] * 9
            assert float(value.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_the_same_seed_builds_the_same_network() -> None:
    built = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        built.append(torch.cat([value.flatten() for value in build("resnet20", 10).parameters()]))
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_shortcut_a_takes_every_second_pixel_and_adds_zero_channels() -> None:
    from vision.networks.cifar_resnet import Block

    block = Block(2, 5, 2, "A").eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 2, 6, 6)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert not out[:, 2:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet33", 10), "Unknown network 'resnet33'. Did you mean .*Valid: cnn9, .*Or torchvision:NAME"),
        (("resnet18", 10), "resnet18_small has a 3x3 stem.*torchvision:resnet18 has the 7x7 stem"),
        (("torchvision:resnet19", 10), "Unknown torchvision network 'resnet19'"),
        (("resnet20", 1), "number of classes is 1"),
        (("resnet20", 10, 0), "number of channels is 0"),
    ],
)
def test_bad_names_get_one_clear_sentence(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(*arguments)


def test_bad_options_get_one_clear_sentence() -> None:
    for name, options, message in [
        ("resnet20", {"shortcuts": "A"}, "Unknown option of resnet20: 'shortcuts'. Did you mean 'shortcut'"),
        ("resnet20", {"shortcut": "C"}, "must be A or B"),
        ("resnet18_small", {"final_norm": True}, "Unknown option of resnet18_small"),
        ("torchvision:resnet18", {"width": 3}, "Unknown option of torchvision:resnet18"),
        ("mlp", {"image_size": (3, 3)}, "image size is"),
    ]:
        with pytest.raises(UserError, match=message):
            build(name, 10, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cnn9 needs images of 28 x 28 or larger and got 20 x 28"):
        on_meta("cnn9")(torch.empty(2, 3, 20, 28, device="meta"))
    with pytest.raises(UserError, match="built for images of 28 x 28 and got 32 x 32"):
        build("mlp", 10, 1)(torch.zeros(1, 1, 32, 32))


def test_torchvision_networks_take_any_channels() -> None:
    with torch.device("meta"):
        for name in ("resnet18", "mobilenet_v3_small", "googlenet"):
            model = build(f"torchvision:{name}", 5, 1)
            assert model(torch.empty(2, 1, 64, 64)).shape == (2, 5)


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    source, path = build("resnet20", 10), tmp_path / "a.pth"
    for stored in (source.state_dict(), {"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}):
        torch.save(stored, path)
        same = build("resnet20", 10, weights=path)
        for one, other in zip(same.state_dict().values(), source.state_dict().values(), strict=True):
            assert torch.equal(one, other)
    other = build("resnet20", 4, 1)
    assert load_weights(other, path) == ("fc.weight", "fc.bias")
    state, first = other.state_dict(), source.state_dict()
    torch.testing.assert_close(state["conv1.weight"], first["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(state["layer3.0.conv1.weight"], first["layer3.0.conv1.weight"])


def test_weights_that_do_not_fit_get_one_clear_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(UserError, match="There is no file"):
        build("resnet20", 10, weights=path)
    torch.save(build("resnet32", 10).state_dict(), path)
    with pytest.raises(UserError, match=r"another network: CifarResNet needs layer1.5.conv1.weight"):
        build("resnet44", 10, weights=path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds list, not weights by name"):
        build("resnet20", 10, weights=path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no file of weights that torch reads safely"):
        build("resnet20", 10, weights=path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UserError, match="no file of weights that torch reads safely"):
        build("resnet20", 10, weights=path)


def test_the_documentation_has_the_table() -> None:
    page = Path(__file__).parent.parent / "docs" / "vision-data.md"
    assert table() in page.read_text(encoding="utf-8"), (
        "python -m vision.networks prints the table for docs/vision-data.md"
    )


def test_the_table_has_every_network() -> None:
    lines = table().splitlines()
    assert len(lines) == 2 + len(NETWORKS)
    assert "| `resnet32` | ResNet-32 for 32 x 32, shortcuts A (option shortcut=B) | 464,154 | 64 |" in lines
    assert networks.names() == [line.split("`")[1] for line in lines[2:]]
